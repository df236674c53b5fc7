#include "choosing.h"

#include "ahead.h"
#include "levels.h"

#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

EXPORTED void avl_unit_panels(const avl_likeness *of, int64_t first, int64_t end)
{
    const avl_likeness_kernels *best = avl_best_likeness();
    for (; first < end; first++)
        best->unit(of, first);
}

EXPORTED void avl_compare_panels(const avl_likeness *of, int64_t first, int64_t end)
{
    const avl_likeness_kernels *best = avl_best_likeness();
    for (; first < end; first++)
        best->compare(of, first);
}

static double gain_of(const avl_likeness_kernels *by, const avl_cover *of, int64_t token)
{
    return of->weights[token] * by->gain(of->covers + token * of->things, of->best, of->things);
}

EXPORTED void avl_add_gains(const avl_cover *of, int64_t first, int64_t end)
{
    const avl_likeness_kernels *best = avl_best_likeness();
    for (; first < end; first++) {
        best->scale(of->covers + first * of->things, of->shares, of->things);
        of->gains[first] = gain_of(best, of, first);
    }
}

// Tokens with what each is worth: the first is worth most, of equal ones the lowest.
typedef struct {
    const double *worth;
    int64_t *tokens, count;
} heap;

static int is_before(const heap *of, int64_t a, int64_t b)
{
    return of->worth[a] > of->worth[b] || (of->worth[a] == of->worth[b] && a < b);
}

// Moves the token at `at` to where it belongs below.
static void sink(const heap *of, int64_t at)
{
    int64_t *tokens = of->tokens, token = tokens[at];
    for (int64_t child; (child = 2 * at + 1) < of->count; at = child) {
        child += child + 1 < of->count && is_before(of, tokens[child + 1], tokens[child]);
        if (!is_before(of, tokens[child], token))
            break;
        tokens[at] = tokens[child];
    }
    tokens[at] = token;
}

static heap heap_of(const double *worth, int64_t *tokens, int64_t count)
{
    heap made = {worth, tokens, count};
    for (int64_t token = 0; token < count; token++)
        tokens[token] = token;
    for (int64_t at = count / 2; at--;)
        sink(&made, at);
    return made;
}

static void take_first(heap *of)
{
    of->tokens[0] = of->tokens[--of->count];
    if (of->count)
        sink(of, 0);
}

static void fetch_row(const avl_cover *of, const heap *in, int64_t at)
{
    if (at < in->count)
        fetch(of->covers + in->tokens[at] * of->things, of->things * (int64_t)sizeof *of->covers);
}

// Gains only shrink as tokens are chosen, so an old one bounds the new one from above: a token whose
// new gain is still in front of all others' bounds is the next one.
EXPORTED void avl_cover_most(const avl_cover *of, int64_t count, int64_t *chosen)
{
    const avl_likeness_kernels *by = avl_best_likeness();
    heap left = heap_of(of->gains, of->order, of->tokens);
    memset(of->looked, 0, (size_t)of->tokens * sizeof *of->looked); // after so many choices
    for (int64_t place = 0; place < count; place++) {
        int64_t token;
        while (of->looked[token = left.tokens[0]] != place) {
            fetch_row(of, &left, 1); // those that may well be looked at next
            fetch_row(of, &left, 2);
            of->gains[token] = gain_of(by, of, token);
            of->looked[token] = place;
            sink(&left, 0);
        }
        chosen[place] = token;
        take_first(&left);
        const float *covers = of->covers + token * of->things;
        for (int64_t i = 0; i < of->things; i++)
            of->best[i] = covers[i] > of->best[i] ? covers[i] : of->best[i];
    }
}

enum { GONE, EVEN, ODD, TOGETHER = 16 };

EXPORTED void avl_find_likest(const avl_repeats *of, int64_t first, int64_t end)
{
    for (int64_t token = first; token < end; token++) {
        const float *near = of->near + token * of->tokens;
        int32_t *likest = of->likest + token * of->known;
        int64_t held = 0;
        for (int64_t begin = 0; begin < of->tokens; begin += TOGETHER) {
            const int64_t until = begin + TOGETHER < of->tokens ? begin + TOGETHER : of->tokens;
            int some = held < of->known;
            for (int64_t i = begin; !some && i < until; i++)
                some |= near[i] > near[likest[of->known - 1]];
            for (int64_t i = begin; some && i < until; i++) {
                if (i == token || (held == of->known && !(near[i] > near[likest[held - 1]])))
                    continue;
                int64_t at = held < of->known ? held++ : held - 1;
                for (; at && near[i] > near[likest[at - 1]]; at--)
                    likest[at] = likest[at - 1];
                likest[at] = (int32_t)i;
            }
        }
    }
}

// The greatest likeness of a token to one of `count` that are odd.
static float likeness_to(const avl_repeats *of, int64_t token, const int64_t *odd, int64_t count)
{
    const float *near = of->near + token * of->tokens;
    const int32_t *likest = of->likest + token * of->known;
    for (int64_t i = 0; i < of->known; i++)
        if (of->states[likest[i]] == ODD)
            return near[likest[i]];
    float found = near[odd[0]];
    for (int64_t i = 1; i < count; i++)
        found = near[odd[i]] > found ? near[odd[i]] : found;
    return found;
}

// What is the lower, the more alike: and of equally alike tokens the lower for the first.
static uint64_t key_of(float alike, int64_t token)
{
    uint32_t bits;
    memcpy(&bits, &alike, sizeof bits);
    if (bits == 1u << 31) // the zero below zero, which is equal to the other
        bits = 0;
    bits ^= bits >> 31 ? 0 : ~(1u << 31);
    return (uint64_t)bits << 32 | (uint64_t)token;
}

// Sorts numbers by one byte after another; those in which all agree cost nothing. Returns where they
// are then.
static uint64_t *sorted(uint64_t *keys, uint64_t *room, int64_t count)
{
    int32_t counts[8][256] = {{0}};
    for (int64_t i = 0; i < count; i++)
        for (int byte = 0; byte < 8; byte++)
            counts[byte][keys[i] >> 8 * byte & 255]++;
    for (int byte = 0; byte < 8; byte++) {
        int32_t *starts = counts[byte], start = 0;
        if (starts[keys[0] >> 8 * byte & 255] == count)
            continue;
        for (int value = 0; value < 256; value++) {
            const int32_t those = starts[value];
            starts[value] = start;
            start += those;
        }
        for (int64_t i = 0; i < count; i++)
            room[starts[keys[i] >> 8 * byte & 255]++] = keys[i];
        uint64_t *swapped = keys;
        keys = room;
        room = swapped;
    }
    return keys;
}

EXPORTED void avl_drop_repeats(const avl_repeats *of, int64_t *left, int64_t count, int64_t most,
                               int64_t drop)
{
    memset(of->states, GONE, (size_t)of->tokens);
    while (count > most) {
        const int64_t evens = (count + 1) / 2, odds = count / 2;
        int64_t *even = of->order, *odd = of->order + evens;
        for (int64_t i = 0; i < count; i++) {
            (i % 2 ? odd : even)[i / 2] = left[i];
            of->states[left[i]] = i % 2 ? ODD : EVEN;
        }
        for (int64_t i = 0; i < evens; i++)
            of->keys[i] = key_of(likeness_to(of, even[i], odd, odds), even[i]);
        const uint64_t *keys = sorted(of->keys, of->keys + of->tokens, evens);
        int64_t gone = count - most < drop ? count - most : drop;
        gone = gone < evens ? gone : evens;
        for (int64_t i = 0; i < evens; i++) {
            const int64_t token = (int64_t)(keys[i] & UINT32_MAX);
            if (i < gone)
                of->states[token] = GONE;
            else
                left[i - gone] = token;
        }
        memcpy(left + evens - gone, odd, (size_t)odds * sizeof *odd);
        count -= gone;
    }
}
