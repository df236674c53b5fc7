#include "prompt_amx.h"

#if defined(AVL_AMX) // build.py: compilers do not agree on a macro of their own

#include "prompt_amx_pack.h"

// Tiles 0 to 3 += two columns of blocks by two of the others', `count` numbers of each.
HELPER void multiply(const uint16_t *left, const uint16_t *next_left, const uint16_t *right,
                     const uint16_t *next_right, int64_t count)
{
    for (int64_t i = 0; i < count; i += MATRIX) {
        _tile_loadd(4, left + i, 64);
        _tile_loadd(6, right + i, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, next_right + i, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, next_left + i, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

HELPER void store(float *to, float *next)
{
    _tile_stored(0, to, 64);
    _tile_stored(1, next, 64);
    _tile_stored(2, to + SIDE * SIDE, 64);
    _tile_stored(3, next + SIDE * SIDE, 64);
}

// Scores of a group's rows and `keys` keys, a multiple of STEP.
HELPER void score(const room *own, int64_t row, int64_t keys, int64_t dims)
{
    const uint16_t *q = own->q + row * dims;
    for (int64_t j = 0; j < keys; j += 2 * SIDE) {
        const uint16_t *key = own->keys + j * dims;
        float *to = own->scores + j * SIDE;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        multiply(key, key + SIDE * dims, q, q + SIDE * dims, dims * SIDE);
        store(to, to + KEYS * SIDE);
    }
}

// 2 ** x for finite x and -inf, 1e-4 of it off at most: weights are rounded to bf16.
HELPER __m512 power_of_two(__m512 x)
{
    const __m512 rest = _mm512_reduce_ps(x, 0);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.05517166f), rest, _mm512_set1_ps(0.24261116f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.69326099f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.99992807f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, rest));
}

// As avl_pair, of numbers that are not negative.
HELPER __m512i weight_pair(__m512 even, __m512 odd)
{
    const __m512i half = _mm512_set1_epi32(1 << 15);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32((__m512i)even, half), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_add_epi32((__m512i)odd, half));
}

// What half a group's rows see of a block: all of them the first `shared` keys, and row r those
// before limits[r] of `keys`.
typedef struct {
    int64_t shared, keys;
    __m512i limits;
} sight;

HELPER sight sight_of(const room *own, const place *in, int64_t row, int64_t from, int64_t keys)
{
    if (!in->causal)
        return (sight){keys, keys, _mm512_set1_epi32((int)keys)};
    const __m512i rows = _mm512_loadu_si512(own->new_rows + row);
    const __m512i limits = _mm512_min_epi32(_mm512_sub_epi32(rows, _mm512_set1_epi32((int)from - 1)),
                                            _mm512_set1_epi32((int)keys));
    return (sight){most(0, _mm512_reduce_min_epi32(limits)),
                   most(0, _mm512_reduce_max_epi32(limits)), limits};
}

HELPER __mmask16 who_sees(const sight *of, int64_t key)
{
    return _mm512_cmpgt_epi32_mask(of->limits, _mm512_set1_epi32((int)key));
}

// If scores exceed by far what they are taken relative to, makes that greater, and sums less.
HELPER __m512 raise_top(const room *own, int64_t row, const sight *of, const float *scores,
                        int64_t dims)
{
    __m512 top = _mm512_set1_ps(-INFINITY), before = _mm512_loadu_ps(own->tops + row);
    int64_t j = 0;
    for (; j < of->shared; j++)
        top = _mm512_max_ps(top, _mm512_load_ps(scores + j * SIDE));
    for (; j < of->keys; j++)
        top = _mm512_mask_max_ps(top, who_sees(of, j), top, _mm512_load_ps(scores + j * SIDE));
    const __m512 bound = _mm512_add_ps(before, _mm512_set1_ps(KEPT));
    const __mmask16 exceeds = _mm512_cmp_ps_mask(top, bound, _CMP_GT_OQ);
    if (!exceeds)
        return before;
    const __m512 now = _mm512_mask_mov_ps(before, exceeds, top);
    const __m512 shrink = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), exceeds,
                                             power_of_two(_mm512_sub_ps(before, now)));
    float *out = own->out + row * dims;
    _mm512_storeu_ps(own->tops + row, now);
    _mm512_storeu_ps(own->sums + row, _mm512_mul_ps(shrink, _mm512_loadu_ps(own->sums + row)));
    for (int64_t i = 0; i < dims * SIDE; i += SIDE)
        _mm512_store_ps(out + i, _mm512_mul_ps(shrink, _mm512_load_ps(out + i)));
    return now;
}

// Scores of half a group become weights, and 0 where a row does not see a key, up to key `until`, a
// multiple of STEP.
HELPER void weigh(const room *own, int64_t row, int64_t half, const sight *of, int64_t until,
                  int64_t dims)
{
    const float *scores = own->scores + half * KEYS * SIDE;
    uint16_t *weights = own->weights + half * KEYS * SIDE;
    const __m512 top = raise_top(own, row, of, scores, dims);
    __m512 sum = _mm512_setzero_ps(), other = sum;
    int64_t j = 0;
#define WEIGHT(KEY) power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + (KEY)*SIDE), top))
    for (; j + 2 <= of->shared; j += 2) {
        const __m512 even = WEIGHT(j), odd = WEIGHT(j + 1);
        sum = _mm512_add_ps(sum, even);
        other = _mm512_add_ps(other, odd);
        _mm512_store_si512(weights + j * SIDE, weight_pair(even, odd));
    }
    for (; j < until; j += 2) {
        const __m512 even = _mm512_maskz_mov_ps(who_sees(of, j), WEIGHT(j));
        const __m512 odd = _mm512_maskz_mov_ps(who_sees(of, j + 1), WEIGHT(j + 1));
        sum = _mm512_add_ps(sum, even);
        other = _mm512_add_ps(other, odd);
        _mm512_store_si512(weights + j * SIDE, weight_pair(even, odd));
    }
#undef WEIGHT
    sum = _mm512_add_ps(sum, other);
    _mm512_storeu_ps(own->sums + row, _mm512_add_ps(sum, _mm512_loadu_ps(own->sums + row)));
}

// Adds what a group's rows take of the values of `keys` keys, a multiple of STEP.
HELPER void add_values(const room *own, int64_t row, int64_t keys, int64_t dims)
{
    const uint16_t *weights = own->weights;
    for (int64_t i = 0; i < dims; i += 2 * SIDE) {
        float *to = own->out + row * dims + i * SIDE, *next = to + dims * SIDE;
        const uint16_t *value = own->values + i * KEYS;
        _tile_loadd(0, to, 64);
        _tile_loadd(1, next, 64);
        _tile_loadd(2, to + SIDE * SIDE, 64);
        _tile_loadd(3, next + SIDE * SIDE, 64);
        multiply(value, value + SIDE * KEYS, weights, weights + KEYS * SIDE, keys * SIDE);
        store(to, next);
    }
}

HELPER void attend_group(const room *own, const place *in, int64_t row, int64_t from, int64_t keys,
                         int64_t dims)
{
    const sight low = sight_of(own, in, row, from, keys);
    const sight high = sight_of(own, in, row + SIDE, from, keys);
    const int64_t until = whole(most(low.keys, high.keys), STEP);
    if (!until)
        return;
    avl_have_stored(own->keys);
    score(own, row, until, dims);
    weigh(own, row, 0, &low, until, dims);
    weigh(own, row + SIDE, 1, &high, until, dims);
    avl_have_stored(own->weights);
    add_values(own, row, until, dims);
}

HELPER void attend_rows(const avl_prompt *prompt, int64_t task, float *memory, int64_t d)
{
    const avl_step *step = prompt->step;
    const int64_t part = task / prompt->blocks, rows = rows_of(prompt);
    const int64_t first = task % prompt->blocks * prompt->block;
    const int64_t count = least(prompt->block, rows - first);
    const room own = room_at(memory, count, d);
    pack_queries(prompt, &own, step->q + start_of(step, part, prompt->group), first, count);
    place places[3];
    find_places(step, part, places);
    avl_amx_begin();
    for (const place *in = places; in < places + 3; in++) {
        const int64_t until = seen_by(in, 0, in->rows, own.new_rows[own.rows - 1]);
        for (int64_t from = 0; from < until; from += KEYS) {
            const int64_t keys = least(KEYS, until - from);
            pack_keys(&own, view_of(&in->keys, from, keys, d, own.widened), keys);
            pack_values(&own, view_of(&in->values, from, keys, d, own.widened), keys);
            for (int64_t row = 0; row < own.rows; row += GROUP)
                attend_group(&own, in, row, from, keys, own.dims);
        }
    }
    avl_amx_end();
    finish(prompt, &own, step->out + start_of(step, part, prompt->group), first, count);
}

static void attend(const avl_prompt *prompt, int64_t task, float *memory)
{
    AVL_FOR_SIZE(attend_rows, prompt->step->head_dim, prompt, task, memory)
}

// Matrix units are so fast that packing keys counts: for many query rows at a time.
enum { BLOCK = 1024 };

static const avl_prompt_tiles tiles = {attend, room_of, BLOCK, GROUP, 1, INT64_MAX};
const avl_prompt_tiles *const avl_prompt_amx = &tiles;

#else

const avl_prompt_tiles *const avl_prompt_amx = NULL;

#endif
