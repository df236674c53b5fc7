// Query rows, keys and values as whole numbers of 16 bits, in the order in which products of pairs of
// them read them.
#ifndef AVL_PROMPT_WORDS_PACK_H
#define AVL_PROMPT_WORDS_PACK_H

#include "prompt_places.h"
#include "transpose.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
    KEYS = 64,       // of a block, and
    ROWS = 6,        // query rows that are computed together, whose sums are
    WIDE = 4,        // times so many registers; as in prompt_tile.h
    LANES = SIDE,    // of a register
    PAIR = 2,        // words that a product adds up
    LARGEST = 5792,  // of weights and values: KEYS * LARGEST * LARGEST is less than 2 ** 31
    MOST_SIZE = 512, // of a head: its words have 11 bits then, more than bf16
    ODD = 0x99,      // of VFPCLASSPS: both kinds of NaN, both infinities
};

// A thread's memory. Words that a product adds up lie beside each other; those of keys are of one key,
// those of values of one dimension.
typedef struct {
    int64_t d, dims;                  // of a head; in whole registers
    int largest;                      // of queries and keys: dims * largest ** 2 is less than 2 ** 31
    float *out;                       // [rows, dims]
    float *tops, *sums, *scales;      // [rows]; the last ones turn scores into powers of two
    float *key_scales, *value_scales; // [KEYS]
    float *flaw;                      // NaN where a block's values have one, else 0
    int16_t *q;                       // [rows, dims]
    int16_t *keys;                    // [dims / PAIR, KEYS, PAIR]
    int16_t *values;                  // [KEYS / PAIR, dims, PAIR], in the order of `key_of`
} room;

HELPER int64_t whole(int64_t count, int64_t each) { return (count + each - 1) / each * each; }

HELPER int64_t room_of(int64_t block, int64_t d)
{
    const int64_t dims = whole(d, LANES), words = block * dims + 2 * KEYS * dims;
    return block * dims + 3 * block + 2 * KEYS + 1 + words / 2;
}

HELPER room room_at(float *memory, int64_t block, int64_t d)
{
    room own = {.d = d, .dims = whole(d, LANES), .out = memory};
    own.largest = (int)least(INT16_MAX, (int64_t)sqrtf((float)(INT32_MAX / own.dims)) - 1);
    own.keys = (int16_t *)(own.out + block * own.dims);
    own.values = own.keys + KEYS * own.dims;
    own.q = own.values + KEYS * own.dims;
    own.key_scales = (float *)(own.q + block * own.dims);
    own.value_scales = own.key_scales + KEYS;
    own.tops = own.value_scales + KEYS;
    own.sums = own.tops + block;
    own.scales = own.sums + block;
    own.flaw = own.scales + block;
    return own;
}

// Where the first key of a block's pair is: packing words takes four of one register after four of
// another.
HELPER int64_t key_of(int64_t pair)
{
    return pair / LANES * 2 * LANES + pair % 4 / 2 * LANES + pair % LANES / 4 * 4 + pair % 2 * PAIR;
}

// So many numbers of a row from `i` on, of 16 at most, and zeros.
HELPER __m512 numbers_of(const float *row, int64_t i, int64_t d)
{
    if (i + LANES <= d)
        return _mm512_loadu_ps(row + i);
    return _mm512_maskz_loadu_ps(i < d ? (__mmask16)((1u << (d - i)) - 1) : 0, row + i);
}

// A row's greatest number, which is to become `largest`; NaN if it has one, or is infinite.
HELPER float greatest_of(const float *row, int64_t d)
{
    __m512 top = _mm512_setzero_ps();
    __mmask16 odd = 0;
    for (int64_t i = 0; i < d; i += LANES) {
        const __m512 numbers = numbers_of(row, i, d);
        top = _mm512_max_ps(_mm512_abs_ps(numbers), top);
        odd |= _mm512_fpclass_ps_mask(numbers, ODD);
    }
    return odd ? NAN : _mm512_reduce_max_ps(top);
}

HELPER __m512 factor_of(float greatest, int largest)
{
    return _mm512_set1_ps(greatest >= FLT_MIN ? (float)largest / greatest : 0.0f);
}

HELPER __m512i whole_numbers(const float *row, int64_t i, int64_t d, __m512 factor)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(numbers_of(row, i, d), factor));
}

// Numbers [i, i + 2 * LANES) of a row as words.
HELPER __m512i words_of(const float *row, int64_t i, int64_t d, __m512 factor)
{
    const __m256i low = _mm512_cvtepi32_epi16(whole_numbers(row, i, d, factor));
    const __m256i high = _mm512_cvtepi32_epi16(whole_numbers(row, i + LANES, d, factor));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// A query row; `unit` turns its products with keys into powers of two.
HELPER void pack_query(const room *own, const float *q, int64_t row, float unit)
{
    const float greatest = greatest_of(q, own->d);
    const __m512 factor = factor_of(greatest, own->largest);
    for (int64_t i = 0; i < own->dims; i += LANES)
        _mm256_storeu_si256((__m256i *)(own->q + row * own->dims + i),
                            _mm512_cvtepi32_epi16(whole_numbers(q, i, own->d, factor)));
    own->scales[row] = greatest / (float)own->largest * unit;
    own->tops[row] = -FLT_MAX;
    own->sums[row] = 0.0f;
    memset(own->out + row * own->dims, 0, (size_t)own->dims * sizeof(float));
}

// Keys, and zeros behind them.
HELPER void pack_keys(const room *own, row_view keys, int64_t count)
{
    __m512 factors[KEYS];
    for (int64_t j = 0; j < KEYS; j++) {
        const float greatest = j < count ? greatest_of(keys.at + j * keys.stride, own->d) : 0.0f;
        factors[j] = factor_of(greatest, own->largest);
        own->key_scales[j] = greatest / (float)own->largest;
    }
    for (int64_t j = 0; j < count; j += LANES)
        for (int64_t i = 0; i < own->dims; i += PAIR * LANES) {
            __m512i rows[SIDE];
            for (int64_t r = 0; r < SIDE; r++)
                rows[r] = j + r < count ? words_of(keys.at + (j + r) * keys.stride, i, own->d,
                                                   factors[j + r])
                                        : _mm512_setzero_si512();
            avl_transpose(rows);
            const int64_t pairs = least(SIDE, (own->dims - i) / PAIR);
            for (int64_t p = 0; p < pairs; p++)
                _mm512_storeu_si512(own->keys + ((i / PAIR + p) * KEYS + j) * PAIR, rows[p]);
        }
}

HELPER void pack_values(const room *own, row_view values, int64_t count)
{
    __m512 factors[KEYS];
    *own->flaw = 0.0f;
    for (int64_t j = 0; j < KEYS; j++) {
        const float greatest =
            j < count ? greatest_of(values.at + j * values.stride, own->d) : 0.0f;
        factors[j] = factor_of(greatest, LARGEST);
        own->value_scales[j] = greatest / (float)LARGEST;
        if (isnan(greatest))
            *own->flaw = NAN;
    }
    for (int64_t p = 0; p < KEYS / PAIR; p++) {
        const int64_t even = key_of(p), odd = even + 1;
        const float *at = values.at + even * values.stride;
        for (int64_t i = 0; even < count && i < own->dims; i += LANES) {
            const __m512i low = whole_numbers(at, i, own->d, factors[even]);
            const __m512i high = odd < count ? whole_numbers(at + values.stride, i, own->d, factors[odd])
                                             : _mm512_setzero_si512();
            _mm512_storeu_si512(own->values + (p * own->dims + i) * PAIR,
                                _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16)));
        }
    }
}

#endif
