// SplitCacheStep and SplitCachePrompt beside softmax in float64, with rows of numbers and of codes.
#include "check.h"

#include "halves.h"
#include "levels.h"
#include "processor.h"
#include "step.h"

#include <math.h>
#include <string.h>

enum { MOST_KEYS = 4096 };

static const double ALLOWED = 2e-5, IN_DIGITS = 1e-4; // of queries and weights, two of 8 bits

static int64_t masses(const avl_step *s) { return s->batch * s->kv_heads * s->weightings; }

static avl_step any_step(int64_t rows, int64_t head_dim, int64_t most_rows)
{
    avl_step s = {.rows = rows, .head_dim = head_dim, .scale = 1.0f / sqrtf((float)head_dim)};
    s.batch = any_whole(1, 2);
    s.kv_heads = any_whole(1, 2);
    s.heads = s.kv_heads * any_whole(1, 3);
    s.active = any_whole(1, most_rows);
    s.parked = any_whole(1, most_rows);
    s.weightings = any_whole(1, 2);
    int64_t parts = s.batch * s.kv_heads;
    s.q = numbers(s.batch * s.heads * rows * head_dim);
    s.k_new = numbers(parts * rows * head_dim);
    s.v_new = numbers(parts * rows * head_dim);
    s.k_active = numbers(parts * s.active * head_dim);
    s.v_active = numbers(parts * s.active * head_dim);
    s.k_parked = numbers(parts * s.parked * head_dim);
    s.v_parked = numbers(parts * s.parked * head_dim);
    float *weights = numbers(s.batch * s.weightings * rows);
    for (int64_t i = 0; i < s.batch * s.weightings * rows; i++) // some have none
        weights[i] = weights[i] < -0.5f ? 0.0f : fabsf(weights[i]);
    s.row_weights = weights;
    int64_t *lengths = (int64_t *)(numbers(4 * s.batch + 1) + 1); // of 8 bytes each
    for (int64_t b = 0; b < s.batch; b++) {
        lengths[b] = any_whole(0, s.active);
        lengths[s.batch + b] = any_whole(0, s.parked);
    }
    s.active_len = lengths;
    s.parked_len = lengths + s.batch;
    if (any_whole(0, 1)) {
        s.unlike = any_whole(0, 1) ? s.kv_heads : 1;
        s.bias_active = numbers(s.batch * s.unlike * rows * s.active);
        s.bias_parked = numbers(s.batch * rows * s.parked);
        s.bias_new = numbers(s.batch * rows * rows);
    }
    s.out = results(s.batch * s.heads * rows * head_dim);
    s.mass_active = results(masses(&s) * s.active);
    s.mass_parked = results(masses(&s) * s.parked);
    s.mass_new = results(masses(&s) * rows);
    return s;
}

// One query row's keys: those of its part that it sees, one after another.
static const float *key_at(const avl_step *s, int64_t part, int64_t j, const float *active,
                           const float *parked, const float *fresh)
{
    int64_t b = part / s->kv_heads, a = s->active_len[b], p = s->parked_len[b], d = s->head_dim;
    if (j < a)
        return active + (part * s->active + j) * d;
    if (j < a + p)
        return parked + (part * s->parked + j - a) * d;
    return fresh + (part * s->rows + j - a - p) * d;
}

// What is added to the row's score on such a key.
static double bias_at(const avl_step *s, int64_t part, int64_t row, int64_t j)
{
    const int64_t b = part / s->kv_heads, a = s->active_len[b], p = s->parked_len[b];
    const int64_t head = b * s->unlike + (s->unlike == 1 ? 0 : part % s->kv_heads);
    const int64_t at = b * s->rows + row;
    if (!s->bias_active)
        return 0;
    if (j < a)
        return s->bias_active[(head * s->rows + row) * s->active + j];
    return j < a + p ? s->bias_parked[at * s->parked + j - a] : s->bias_new[at * s->rows + j - a - p];
}

// Adds what the row gives to `mass` [R, MOST_KEYS], and checks what it found.
static void check_row(const avl_step *s, int64_t part, int64_t g, int64_t row, double allowed,
                      double *mass)
{
    static double weights[MOST_KEYS];
    int64_t group = s->heads / s->kv_heads, d = s->head_dim, b = part / s->kv_heads;
    int64_t keys = s->active_len[b] + s->parked_len[b] + row + 1;
    int64_t at = ((part * group + g) * s->rows + row) * d;
    double total = 0;
    for (int64_t j = 0; j < keys; j++) {
        const float *key = key_at(s, part, j, s->k_active, s->k_parked, s->k_new);
        double score = 0;
        for (int64_t i = 0; i < d; i++)
            score += (double)s->q[at + i] * key[i];
        total += weights[j] = exp(score * s->scale + bias_at(s, part, row, j));
    }
    for (int64_t i = 0; i < d; i++) {
        double wanted = 0;
        for (int64_t j = 0; j < keys; j++)
            wanted += weights[j] / total *
                      key_at(s, part, j, s->v_active, s->v_parked, s->v_new)[i];
        expect("attention", s->out[at + i], wanted, allowed);
    }
    for (int64_t r = 0; r < s->weightings; r++)
        for (int64_t j = 0; j < keys; j++)
            mass[r * MOST_KEYS + j] += s->row_weights[(b * s->weightings + r) * s->rows + row] *
                                       weights[j] / total / (double)group;
}

// `allowed` is how far attention may be off; masses are never found from digits.
static void check(const avl_step *s, double allowed)
{
    static double mass[2 * MOST_KEYS];
    for (int64_t part = 0; part < s->batch * s->kv_heads; part++) {
        int64_t b = part / s->kv_heads, a = s->active_len[b], p = s->parked_len[b];
        memset(mass, 0, sizeof mass);
        for (int64_t g = 0; g < s->heads / s->kv_heads; g++)
            for (int64_t row = 0; row < s->rows; row++)
                check_row(s, part, g, row, allowed, mass);
        for (int64_t r = 0; r < s->weightings; r++) {
            const double *wanted = mass + r * MOST_KEYS;
            int64_t at = part * s->weightings + r;
            for (int64_t j = 0; j < s->active; j++)
                expect("mass of active", s->mass_active[at * s->active + j], j < a ? wanted[j] : 0,
                       ALLOWED);
            for (int64_t j = 0; j < s->parked; j++)
                expect("mass of parked", s->mass_parked[at * s->parked + j],
                       j < p ? wanted[a + j] : 0, ALLOWED);
            for (int64_t j = 0; j < s->rows; j++)
                expect("mass of new", s->mass_new[at * s->rows + j], wanted[a + p + j], ALLOWED);
        }
    }
}

// Rows as codes of 8 bits, or as halves; the numbers become what those stand for.
static void code(const float **rows, int64_t count, int64_t d, int64_t bits, const void **kept,
                 const float **scales)
{
    float *made = numbers(count * d), *by = numbers(count), *stand_for = numbers(count * d);
    int8_t *codes = (int8_t *)made;
    uint16_t *halves = (uint16_t *)made;
    for (int64_t j = 0; j < count; j++) {
        by[j] = fabsf(by[j]) / 127;
        for (int64_t i = j * d; i < (j + 1) * d; i++)
            if (bits == 16) {
                halves[i] = to_half(stand_for[i]);
                stand_for[i] = of_half(halves[i]);
            } else {
                codes[i] = (int8_t)any_whole(-AVL_MOST_CODE, AVL_MOST_CODE);
                stand_for[i] = by[j] * codes[i];
            }
    }
    *rows = stand_for;
    *kept = made;
    *scales = bits == 16 ? NULL : by;
}

static avl_codes any_codes(avl_step *s, int64_t bits)
{
    avl_codes c = {.bits = bits};
    const int64_t parts = s->batch * s->kv_heads, d = s->head_dim;
    code(&s->k_new, parts * s->rows, d, bits, &c.k_new, &c.k_new_scales);
    code(&s->v_new, parts * s->rows, d, bits, &c.v_new, &c.v_new_scales);
    code(&s->k_active, parts * s->active, d, bits, &c.k_active, &c.k_active_scales);
    code(&s->v_active, parts * s->active, d, bits, &c.v_active, &c.v_active_scales);
    code(&s->k_parked, parts * s->parked, d, bits, &c.k_parked, &c.k_parked_scales);
    code(&s->v_parked, parts * s->parked, d, bits, &c.v_parked, &c.v_parked_scales);
    return c;
}

static void check_step(int64_t rows, int64_t head_dim, int64_t most_rows, int64_t bits)
{
    avl_step step = any_step(rows, head_dim, most_rows);
    avl_codes codes;
    if (bits) {
        codes = any_codes(&step, bits);
        step.codes = &codes;
    }
    if (rows == 1) {
        step.scratch = results(avl_best_step()->scratch(&step));
        expect_done(avl_run_step(NULL, avl_best_step(), &step));
    } else if (avl_is_few(&step)) {
        expect_done(avl_run_few(NULL, avl_best_few(), &step));
    } else {
        expect_done(avl_run_prompt(NULL, avl_best_prompt(), NULL, &step));
    }
    check(&step, ALLOWED);
    forget();
}

// A prompt over codes, where products of bytes compute it.
static void check_digits(int64_t head_dim)
{
    if (!avl_has_vnni() || !avl_prompt_codes)
        return;
    avl_step step = any_step(any_whole(AVL_TILED_ROWS, 2 * AVL_TILED_ROWS), head_dim, 200);
    avl_codes codes = any_codes(&step, 8);
    step.codes = &codes;
    step.bias_active = step.bias_parked = step.bias_new = NULL;
    expect_done(avl_run_prompt(NULL, avl_best_prompt(), avl_prompt_codes, &step));
    check(&step, IN_DIGITS);
    forget();
}

void check_attention(void)
{
    static const int64_t dims[] = {1, 5, 16, 24, 64, 80, 128};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int64_t bits = 0; bits <= 16; bits += 8) {
            check_step(1, dims[i], 30, bits);
            check_step(1, dims[i], 1300, bits); // more than one chunk
            check_step(any_whole(2, AVL_FEW_ROWS), dims[i], 30, bits);
            check_step(any_whole(AVL_FEW_ROWS + 1, 60), dims[i], 30, bits);
            check_step(any_whole(2, 5), dims[i], 1300, bits);
        }
    for (int64_t head_dim = 16; head_dim <= 256; head_dim += 48)
        check_digits(head_dim);
}
