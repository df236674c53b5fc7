// Attention of encoders in whole numbers (AVX-512 VNNI): queries, keys and values become words of up
// to 16 bits with a scale a row, and weights, times values' scales, words with a scale for each block of
// keys. A product of words is twice as many an instruction as of float32, and the words are 8 to 32
// times as exact as bf16. The softmax is in float32, online as in prompt.c.
#include "prompt_words.h"

#if defined(AVL_VNNI) // build.py: not every compiler knows it

#include "prompt_words_pack.h"

// Into loops, so that sizes are known there and sums stay in registers.
#define EACH_ROW(r) _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++)
#define EACH_WIDE(x, count) _Pragma("GCC unroll 4") for (int x = 0; x < (count); x++)

// sum + products of a pair of words each. By the intrinsic GCC copies sums from register to register
// until there are none left.
HELPER __m512i add_products(__m512i sum, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

HELPER __m512i pair_at(const int16_t *words)
{
    int32_t pair;
    memcpy(&pair, words, sizeof pair);
    return _mm512_set1_epi32(pair);
}

// Scores of rows [row, row + ROWS) with the keys of `wide` registers from `j` on, as powers of two.
HELPER void score_wide(const room *own, int64_t row, int64_t j, int wide, int64_t dims,
                       float scores[ROWS][KEYS])
{
    __m512i sum[ROWS][WIDE];
    EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] = _mm512_setzero_si512();
    const int16_t *q = own->q + row * dims, *keys = own->keys + j * PAIR;
    for (int64_t i = 0; i < dims; i += PAIR) {
        __m512i key[WIDE];
        EACH_WIDE(x, wide) key[x] = _mm512_loadu_si512(keys + (i / PAIR * KEYS + x * LANES) * PAIR);
        EACH_ROW(r) {
            const __m512i pair = pair_at(q + r * dims + i);
            EACH_WIDE(x, wide) sum[r][x] = add_products(sum[r][x], key[x], pair);
        }
    }
    EACH_ROW(r) EACH_WIDE(x, wide) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(own->scales[row + r]),
                                           _mm512_loadu_ps(own->key_scales + j + x * LANES));
        _mm512_storeu_ps(scores[r] + j + x * LANES, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum[r][x])));
    }
}

HELPER void score(const room *own, int64_t row, int64_t count, int64_t dims, float scores[ROWS][KEYS])
{
    if (count > KEYS - LANES)
        score_wide(own, row, 0, WIDE, dims, scores);
    else
        for (int64_t j = 0; j < count; j += LANES)
            score_wide(own, row, j, 1, dims, scores);
    for (int r = 0; count < KEYS && r < ROWS; r++)
        for (int64_t j = count; j < KEYS; j++)
            scores[r][j] = -INFINITY;
}

// 2 ** x for finite x and -inf, 3e-6 of it off at most: weights are rounded to 13 bits.
HELPER __m512 power_of_two(__m512 x)
{
    const __m512 rest = _mm512_reduce_ps(x, 0);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.009570101947f), rest, _mm512_set1_ps(0.05591786159f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.2402474484f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.6931218146f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.9999992614f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, rest));
}

// A row's scores become weights relative to about the greatest so far, and those, times values' scales,
// words in the order of `key_of`; returns their unit. Earlier sums shrink by *shrink, mostly 1.
HELPER float weigh(const room *own, int64_t row, const float scores[KEYS], int16_t words[KEYS],
                   float *shrink)
{
    __m512 weights[WIDE], top = _mm512_loadu_ps(scores);
    for (int x = 1; x < WIDE; x++)
        top = _mm512_max_ps(top, _mm512_loadu_ps(scores + x * LANES));
    const float now = _mm512_reduce_max_ps(top), before = own->tops[row];
    *shrink = 1.0f;
    if (now > before + KEPT) {
        *shrink = exp2f(before - now);
        own->tops[row] = now;
    }
    const __m512 relative = _mm512_set1_ps(own->tops[row]);
    EACH_WIDE(x, WIDE)
        weights[x] = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(scores + x * LANES), relative));
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(weights[0], weights[1]),
                                     _mm512_add_ps(weights[2], weights[3]));
    own->sums[row] = *shrink * own->sums[row] + _mm512_reduce_add_ps(sum);
    top = _mm512_setzero_ps();
    EACH_WIDE(x, WIDE) {
        weights[x] = _mm512_mul_ps(weights[x], _mm512_loadu_ps(own->value_scales + x * LANES));
        top = _mm512_max_ps(weights[x], top);
    }
    const float greatest = _mm512_reduce_max_ps(top);
    const __m512 factor = factor_of(greatest, LARGEST);
    for (int x = 0; x < WIDE; x += 2)
        _mm512_storeu_si512(words + x * LANES,
                            _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(weights[x], factor)),
                                               _mm512_cvtps_epi32(_mm512_mul_ps(weights[x + 1], factor))));
    return greatest / (float)LARGEST + *own->flaw;
}

// out = shrink * out + units * the sum of weights times values, `wide` registers from dimension `i` on.
HELPER void add_values(const room *own, int64_t row, int64_t i, int wide, int64_t count, int64_t dims,
                       int16_t weights[ROWS][KEYS], const float units[ROWS], const float shrink[ROWS])
{
    __m512i sum[ROWS][WIDE];
    EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] = _mm512_setzero_si512();
    for (int64_t p = 0; p < KEYS / PAIR; p++) {
        if (key_of(p) >= count)
            continue;
        __m512i value[WIDE];
        EACH_WIDE(x, wide)
            value[x] = _mm512_loadu_si512(own->values + (p * dims + i + x * LANES) * PAIR);
        EACH_ROW(r) {
            const __m512i pair = pair_at(weights[r] + p * PAIR);
            EACH_WIDE(x, wide) sum[r][x] = add_products(sum[r][x], value[x], pair);
        }
    }
    EACH_ROW(r) EACH_WIDE(x, wide) {
        float *to = own->out + (row + r) * dims + i + x * LANES;
        const __m512 before = _mm512_mul_ps(_mm512_set1_ps(shrink[r]), _mm512_loadu_ps(to));
        _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(units[r]), _mm512_cvtepi32_ps(sum[r][x]),
                                             before));
    }
}

HELPER void attend_group(const room *own, int64_t row, int64_t count, int64_t dims)
{
    float scores[ROWS][KEYS] __attribute__((aligned(64))), units[ROWS], shrink[ROWS];
    int16_t weights[ROWS][KEYS] __attribute__((aligned(64)));
    score(own, row, count, dims, scores);
    for (int r = 0; r < ROWS; r++)
        units[r] = weigh(own, row + r, scores[r], weights[r], shrink + r);
    int64_t i = 0;
    for (; i + WIDE * LANES <= dims; i += WIDE * LANES)
        add_values(own, row, i, WIDE, count, dims, weights, units, shrink);
    for (; i < dims; i += LANES)
        add_values(own, row, i, 1, count, dims, weights, units, shrink);
}

// What a part's query row found, to where it belongs.
HELPER void finish(const room *own, int64_t row, float *out)
{
    const __m512 share = _mm512_set1_ps(1.0f / own->sums[row]);
    for (int64_t i = 0; i < own->d; i += LANES) {
        const __mmask16 there = (__mmask16)(own->d - i < LANES ? (1u << (own->d - i)) - 1 : 0xffff);
        const __m512 sum = _mm512_loadu_ps(own->out + row * own->dims + i);
        _mm512_mask_storeu_ps(out + i, there, _mm512_mul_ps(share, sum));
    }
}

// Rows [row, row + ROWS) of `count` ask for their share of a block of keys and values.
HELPER void fetch_share(const place *in, int64_t from, int64_t d, int64_t row, int64_t count)
{
    const int64_t keys = least(KEYS, in->rows - from), until = least(count, row + ROWS);
    const int64_t size = d * (int64_t)sizeof(float);
    for (int64_t j = row * keys / count; j < until * keys / count; j++) {
        fetch((const char *)(in->keys.data + (from + j) * in->keys.stride), size);
        fetch((const char *)(in->values.data + (from + j) * in->values.stride), size);
    }
}

HELPER void attend_rows(const avl_prompt *prompt, int64_t task, float *memory, int64_t dims)
{
    const avl_step *step = prompt->step;
    const int64_t part = task / prompt->blocks, first = task % prompt->blocks * prompt->block;
    const int64_t count = least(prompt->block, rows_of(prompt) - first);
    const int64_t start = start_of(step, part, 1);
    const room own = room_at(memory, prompt->block, step->head_dim);
    const float unit = step->scale * (float)M_LOG2E;
    for (int64_t row = 0; row < whole(count, ROWS); row++) // behind the last one it comes again
        pack_query(&own, step->q + start + place_of(step, 0, first + least(row, count - 1)), row, unit);
    place places[3];
    find_places(step, part, places);
    const place *in = places + 2; // an encoder has no other rows
    for (int64_t from = 0; from < in->rows; from += KEYS) {
        const int64_t keys = least(KEYS, in->rows - from);
        pack_keys(&own, view_of(&in->keys, from, keys, own.d, NULL), keys);
        pack_values(&own, view_of(&in->values, from, keys, own.d, NULL), keys);
        for (int64_t row = 0; row < count; row += ROWS) {
            // The groups of this block ask for the next one, each for its share.
            fetch_share(in, from + KEYS, own.d, row, count);
            attend_group(&own, row, keys, dims);
        }
    }
    for (int64_t row = 0; row < count; row++)
        finish(&own, row, step->out + start + place_of(step, 0, first + row));
}

static void attend(const avl_prompt *prompt, int64_t task, float *memory)
{
    const int64_t dims = whole(prompt->step->head_dim, LANES);
    AVL_FOR_SIZE(attend_rows, dims, prompt, task, memory)
}

// Packing keys counts: for many query rows at a time, whose sums stay in the second cache.
enum { BLOCK = 1152 };

static const avl_prompt_tiles kernels = {attend, room_of, BLOCK, ROWS, 1, MOST_SIZE};
const avl_prompt_tiles *const avl_prompt_words = &kernels;

#else

const avl_prompt_tiles *const avl_prompt_words = NULL;

#endif
