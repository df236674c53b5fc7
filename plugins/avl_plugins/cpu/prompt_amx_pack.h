// Query rows, keys and values in the order in which matrix registers read them.
#ifndef AVL_PROMPT_AMX_PACK_H
#define AVL_PROMPT_AMX_PACK_H

#include "amx.h"
#include "prompt_places.h"

#include <math.h>
#include <string.h>

enum {
    KEYS = 128, // packed at a time for all rows of a task
    GROUP = 32, // query rows that are computed together, in
    HALVES = 2, // halves of 16: the columns of a matrix register
};

// A thread's memory. Matrices lie in the order in which registers read them: keys, and dimensions
// of values, are rows of one; query rows are columns, with two dimensions, or keys, beside each
// other.
typedef struct {
    int64_t d, dims, rows;  // of a head, in whole STEPs; query rows in whole GROUPs
    uint16_t *q;            // [rows / SIDE, dims / STEP, MATRIX]
    float *out;             // [rows / SIDE, dims, SIDE]
    float *tops, *sums;     // [rows]
    int32_t *new_rows;      // [rows]: which of the new rows each is
    uint16_t *keys;         // [KEYS / SIDE, dims / STEP, MATRIX]
    uint16_t *values;       // [dims / SIDE, KEYS / STEP, MATRIX]
    float *scores;          // [HALVES, KEYS, SIDE]
    uint16_t *weights;      // [HALVES, KEYS / STEP, MATRIX]
    float *widened;         // [KEYS, d]: rows that are not stored as float32
} room;

HELPER int64_t whole(int64_t count, int64_t each) { return (count + each - 1) / each * each; }

// Floats of a room, in the order of `room_at`.
HELPER int64_t room_of(int64_t block, int64_t d)
{
    const int64_t rows = whole(block, GROUP), dims = whole(d, STEP);
    return rows * dims / 2 + rows * dims + 3 * rows + KEYS * dims + HALVES * KEYS * SIDE * 3 / 2 +
           KEYS * d;
}

HELPER room room_at(float *memory, int64_t count, int64_t d)
{
    room own = {.d = d, .dims = whole(d, STEP), .rows = whole(count, GROUP)};
    const int64_t sized = own.rows * own.dims;
    own.q = (uint16_t *)memory;
    own.out = memory + sized / 2;
    own.tops = own.out + sized;
    own.sums = own.tops + own.rows;
    own.new_rows = (int32_t *)(own.sums + own.rows);
    own.keys = (uint16_t *)(own.new_rows + own.rows);
    own.values = own.keys + KEYS * own.dims;
    own.scores = (float *)(own.values + KEYS * own.dims);
    own.weights = (uint16_t *)(own.scores + HALVES * KEYS * SIDE);
    own.widened = (float *)(own.weights + HALVES * KEYS * SIDE);
    return own;
}

// So many numbers of a row from `i` on, of 16 at most, and zeros.
HELPER __m512 lanes_of(const float *row, int64_t i, int64_t d)
{
    if (i + SIDE <= d)
        return _mm512_loadu_ps(row + i);
    return _mm512_maskz_loadu_ps(i < d ? (__mmask16)((1u << (d - i)) - 1) : 0, row + i);
}

// Numbers [i, i + STEP) of a row as bf16.
HELPER __m512i step_of(const float *row, int64_t i, int64_t d, __m512 factor)
{
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(lanes_of(row, i + SIDE, d), factor),
                                        _mm512_mul_ps(lanes_of(row, i, d), factor));
}

// Where a part's query row lies in its q and out.
HELPER int64_t query_at(const avl_prompt *prompt, int64_t row)
{
    return place_of(prompt->step, row % prompt->group, row / prompt->group);
}

// Query rows [first, first + count) of a part, in units in which weights are powers of two; behind
// the last one zeros, which see what it sees.
HELPER void pack_queries(const avl_prompt *prompt, const room *own, const float *q, int64_t first,
                         int64_t count)
{
    const __m512 unit = _mm512_set1_ps(prompt->step->scale * (float)M_LOG2E);
    for (int64_t row = 0; row < own->rows; row++) {
        own->new_rows[row] = (int32_t)((first + least(row, count - 1)) / prompt->group);
        own->tops[row] = -INFINITY;
        own->sums[row] = 0.0f;
    }
    memset(own->out, 0, (size_t)(own->rows * own->dims) * sizeof(float));
    for (int64_t row = 0; row < own->rows; row += SIDE)
        for (int64_t i = 0; i < own->dims; i += STEP) {
            __m512i rows[SIDE];
            for (int64_t r = 0; r < SIDE; r++)
                rows[r] = row + r < count ? step_of(q + query_at(prompt, first + row + r), i,
                                                    own->d, unit)
                                          : _mm512_setzero_si512();
            avl_transpose(rows);
            for (int64_t r = 0; r < SIDE; r++)
                _mm512_store_si512(own->q + row * own->dims + i * SIDE + r * STEP, rows[r]);
        }
}

// Keys, and zeros up to a whole STEP of them.
HELPER void pack_keys(const room *own, row_view keys, int64_t count)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t j = 0; j < whole(count, STEP); j++)
        for (int64_t i = 0; i < own->dims; i += STEP)
            _mm512_store_si512(own->keys + j / SIDE * SIDE * own->dims + i * SIDE + j % SIDE * STEP,
                               j < count ? step_of(keys.at + j * keys.stride, i, own->d, one)
                                         : _mm512_setzero_si512());
}

HELPER void pack_values(const room *own, row_view values, int64_t count)
{
    const __m512 zero = _mm512_setzero_ps();
    for (int64_t j = 0; j < count; j += STEP)
        for (int64_t i = 0; i < own->dims; i += SIDE) {
            __m512i pairs[SIDE];
            for (int64_t p = 0; p < SIDE; p++) {
                const int64_t even = j + 2 * p, odd = even + 1;
                const float *at = values.at + even * values.stride;
                pairs[p] = avl_pair(even < count ? lanes_of(at, i, own->d) : zero,
                                    odd < count ? lanes_of(at + values.stride, i, own->d) : zero);
            }
            avl_transpose(pairs);
            for (int64_t p = 0; p < SIDE; p++)
                _mm512_store_si512(own->values + i * KEYS + j * SIDE + p * STEP, pairs[p]);
        }
}

// Sums of values over sums of weights, to where they belong.
HELPER void finish(const avl_prompt *prompt, const room *own, float *out, int64_t first,
                   int64_t count)
{
    for (int64_t row = 0; row < count; row += SIDE) {
        const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(own->sums + row));
        for (int64_t i = 0; i < own->d; i += SIDE) {
            const float *from = own->out + row * own->dims + i * SIDE;
            const __mmask16 there =
                (__mmask16)(own->d - i < SIDE ? (1u << (own->d - i)) - 1 : 0xffff);
            __m512i rows[SIDE];
            for (int64_t r = 0; r < SIDE; r++)
                rows[r] = (__m512i)_mm512_mul_ps(share, _mm512_load_ps(from + r * SIDE));
            avl_transpose(rows);
            for (int64_t r = 0; r < least(SIDE, count - row); r++)
                _mm512_mask_storeu_ps(out + query_at(prompt, first + row + r) + i, there,
                                      (__m512)rows[r]);
        }
    }
}

#endif
