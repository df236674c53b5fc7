// Choices among tokens beside float64 and brute force.
#include "check.h"

#include "choosing.h"
#include "greedy.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALIKE = 3, MOST = 120 }; // every so many tokens are equal; tokens

static double cosine(const float *a, const float *b, int64_t width)
{
    double product = 0, lengths[2] = {0};
    for (int64_t i = 0; i < width; i++) {
        product += (double)a[i] * b[i];
        lengths[0] += (double)a[i] * a[i];
        lengths[1] += (double)b[i] * b[i];
    }
    return product / sqrt(lengths[0] * lengths[1]);
}

static void check_likeness(int64_t tokens, int64_t width, float temperature)
{
    float *rows = numbers(tokens * width);
    for (int64_t token = 0; token + ALIKE < tokens; token += ALIKE)
        memcpy(rows + (token + ALIKE) * width, rows, (size_t)width * sizeof *rows);
    const int64_t panels = (tokens + AVL_PANEL - 1) / AVL_PANEL, stride = tokens + 3;
    float *out = results(tokens * stride);
    avl_likeness of = {.tokens = tokens, .width = width, .stride = stride, .features = rows,
                       .panels = results(panels * AVL_PANEL * width),
                       .out = out, .temperature = temperature};
    avl_unit_panels(&of, 0, panels);
    avl_compare_panels(&of, 0, panels);
    for (int64_t a = 0; a < tokens; a++)
        for (int64_t b = 0; b < tokens; b++) {
            const double wanted = cosine(rows + a * width, rows + b * width, width);
            const double found = out[a * stride + b];
            if (temperature > 0)
                expect("closeness", found, exp((wanted - 1) / temperature),
                       8 * FLT_EPSILON / temperature);
            else
                expect("cosine", found, wanted, 8 * FLT_EPSILON);
            if (a % ALIKE == 0)
                expect("equal tokens", found, out[b], 0);
            expect("the other way round", found, out[b * stride + a], 0);
        }
    forget();
}

// Whole numbers, so that sums are exact and some are equal.
static float *whole_numbers(int64_t least, int64_t count)
{
    float *made = results(count);
    for (int64_t i = 0; i < count; i++)
        made[i] = (float)any_whole(least, 4);
    return made;
}

static void check_cover(int64_t tokens, int64_t things, int64_t count)
{
    float *covers = whole_numbers(-2, tokens * things), *best = results(things);
    float *given = results(tokens * things), *shares = whole_numbers(0, things);
    double weights[MOST], worth[MOST];
    avl_runner runners[MOST];
    int64_t looked[MOST], state[(3 + 2) * AVL_LINE_WORDS] = {0}, chosen[MOST];
    for (int64_t token = 0; token < tokens; token++)
        weights[token] = (double)any_whole(0, 3);
    memset(best, 0, (size_t)things * sizeof *best);
    for (int64_t i = 0; i < tokens * things; i++) {
        given[i] = covers[i];
        covers[i] *= shares[i % things];
    }
    const avl_race race = {tokens, 1, worth, runners, looked, state};
    const avl_cover of = {race, things, given, shares, weights, best};
    avl_cover_most(&of, 0, count, chosen);
    float *known = results(things);
    memset(known, 0, (size_t)things * sizeof *known);
    for (int64_t place = 0; place < count; place++) {
        int64_t first = -1;
        double most = -1;
        for (int64_t token = 0; token < tokens; token++) {
            double gain = 0;
            for (int64_t i = 0; i < things; i++)
                gain += weights[token] * fmax(covers[token * things + i] - known[i], 0);
            for (int64_t i = 0; i < place; i++)
                gain = chosen[i] == token ? -1 : gain;
            if (gain > most)
                most = gain, first = token;
        }
        expect("covering token", (double)chosen[place], (double)first, 0);
        for (int64_t i = 0; i < things; i++)
            known[i] = fmaxf(known[i], covers[first * things + i]);
    }
    forget();
}

// One round, token by token.
static int64_t drop_some(const float *near, int64_t tokens, int64_t *left, int64_t count, int64_t drop)
{
    const int64_t evens = (count + 1) / 2;
    int64_t even[MOST], odd[MOST];
    float alike[MOST];
    for (int64_t i = 0; i < count; i++)
        (i % 2 ? odd : even)[i / 2] = left[i];
    for (int64_t i = 0; i < evens; i++) {
        alike[i] = -INFINITY;
        for (int64_t j = 0; j < count / 2; j++)
            alike[i] = fmaxf(alike[i], near[even[i] * tokens + odd[j]]);
    }
    for (int64_t i = 0; i < evens; i++) { // whose place is that of how many are in front of it
        int64_t place = 0;
        for (int64_t j = 0; j < evens; j++)
            place += alike[j] > alike[i] || (alike[j] == alike[i] && even[j] < even[i]);
        if (place >= drop)
            left[place - drop] = even[i];
    }
    memcpy(left + evens - drop, odd, (size_t)(count / 2) * sizeof *odd);
    return count - drop;
}

static void check_repeats(int64_t tokens, int64_t known, int64_t count, int64_t most)
{
    float *near = whole_numbers(-2, tokens * tokens), *alike = results(tokens * known);
    int32_t likest[MOST * MOST];
    uint64_t keys[2 * MOST];
    int64_t order[MOST], left[MOST], wanted[MOST];
    uint8_t states[MOST + 1];
    for (int64_t i = 0; i < tokens; i++)
        wanted[i] = i;
    for (int64_t i = 0; i < tokens; i++) {
        const int64_t other = any_whole(i, tokens - 1), token = wanted[other];
        wanted[other] = wanted[i];
        wanted[i] = token;
    }
    memcpy(left, wanted, sizeof left);
    const avl_repeats of = {tokens, known, near, likest, alike, keys, order, states};
    avl_find_likest(&of, 0, tokens);
    avl_drop_repeats(&of, left, count, most, 8);
    while (count > most) {
        int64_t drop = count - most < 8 ? count - most : 8;
        drop = drop < (count + 1) / 2 ? drop : (count + 1) / 2;
        count = drop_some(near, tokens, wanted, count, drop);
    }
    for (int64_t i = 0; i < most; i++)
        expect("token that stays", (double)left[i], (double)wanted[i], 0);
    forget();
}

void check_choosing(void)
{
    static const int64_t sizes[][2] = {{1, 5}, {48, 64}, {50, 129}, {MOST, 300}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int temperature = 0; temperature < 2; temperature++)
            check_likeness(sizes[i][0], sizes[i][1], temperature ? 0.2f : 0.0f);
    static const int64_t covers[][3] = {{1, 1, 1}, {7, 200, 7}, {60, 13, 40}, {MOST, 700, 30}};
    for (size_t i = 0; i < sizeof covers / sizeof *covers; i++)
        check_cover(covers[i][0], covers[i][1], covers[i][2]);
    static const int64_t repeats[][4] = {
        {2, 8, 2, 1}, {30, 8, 30, 3}, {100, 99, 81, 10}, {MOST, 24, MOST, 1},
    };
    for (size_t i = 0; i < sizeof repeats / sizeof *repeats; i++)
        check_repeats(repeats[i][0], repeats[i][1], repeats[i][2], repeats[i][3]);
}
