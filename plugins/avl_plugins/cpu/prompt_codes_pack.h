// Query rows in two digits of 8 bits, and codes of a block of keys in the order in which products
// of bytes read them.
#ifndef AVL_PROMPT_CODES_PACK_H
#define AVL_PROMPT_CODES_PACK_H

#include "prompt_tile.h"
#include "transpose.h"

#include <math.h>

enum {
    FOUR = 4,          // bytes that a product adds up
    DIGIT = 256,       // of the low digit one is so many of the high one's
    LARGEST = 127 * DIGIT,
    FLIPPED = 0x80,    // what turns signed codes into such as begin at 0
    ODD = 0x99,        // of VFPCLASSPS: both kinds of NaN, both infinities
};

// A thread's memory, after which rows of the tiles are.
typedef struct {
    int8_t *high, *low;       // [rows, d]: digits of the query rows
    float *scales;            // [rows]: of the query rows, in powers of two
    int32_t *starts;          // [rows, 2]: what sums of products begin with, as keys are flipped
    uint8_t *keys;            // [d / FOUR, KEYS, FOUR]
    int8_t *values;           // [KEYS / FOUR, d, FOUR]
    float *key_scales, *value_scales; // [KEYS]
} room;

HELPER int64_t room_of(int64_t block, int64_t d)
{
    return (2 * block * d + 2 * KEYS * d) / (int64_t)sizeof(float) + 3 * block + 2 * KEYS;
}

HELPER room room_at(float *memory, int64_t block, int64_t d)
{
    room own = {.keys = (uint8_t *)memory};
    own.values = (int8_t *)own.keys + KEYS * d;
    own.key_scales = (float *)(own.values + KEYS * d);
    own.value_scales = own.key_scales + KEYS;
    own.high = (int8_t *)(own.value_scales + KEYS);
    own.low = own.high + block * d;
    own.scales = (float *)(own.low + block * d);
    own.starts = (int32_t *)(own.scales + block);
    return own;
}

// A query row's digits: its numbers are a scale times (DIGIT * high + low), to 2 ** -16 of the
// greatest. `unit` turns its products with keys into powers of two.
HELPER void pack_query(const room *own, const float *q, int64_t row, int64_t d, float unit)
{
    __m512 top = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += SIDE)
        top = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(q + i)), top);
    const float greatest = _mm512_reduce_max_ps(top);
    const __m512 factor = _mm512_set1_ps(greatest > 0.0f ? (float)LARGEST / greatest : 0.0f);
    __mmask16 odd = 0; // which are infinite or no numbers
    __m512i highs = _mm512_setzero_si512(), lows = highs;
    for (int64_t i = 0; i < d; i += SIDE) {
        const __m512 numbers = _mm512_loadu_ps(q + i);
        const __m512i both = _mm512_cvtps_epi32(_mm512_mul_ps(numbers, factor));
        const __m512i half = _mm512_set1_epi32(DIGIT / 2);
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(both, half), 8);
        const __m512i low = _mm512_sub_epi32(both, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i *)(own->high + row * d + i), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i *)(own->low + row * d + i), _mm512_cvtepi32_epi8(low));
        highs = _mm512_add_epi32(highs, high);
        lows = _mm512_add_epi32(lows, low);
        odd |= _mm512_fpclass_ps_mask(numbers, ODD);
    }
    own->scales[row] = odd ? NAN : greatest / (float)LARGEST * unit;
    own->starts[2 * row] = -FLIPPED * _mm512_reduce_add_epi32(highs);
    own->starts[2 * row + 1] = -FLIPPED * _mm512_reduce_add_epi32(lows);
}

// Codes of so many rows, zeros behind them, and their scales.
HELPER void pack_scales(const stored_rows *of, int64_t from, int64_t count, float *to)
{
    memcpy(to, of->scales + from, (size_t)count * sizeof(float));
    memset(to + count, 0, (size_t)(KEYS - count) * sizeof(float));
}

HELPER void pack_keys(const room *own, const stored_rows *of, int64_t from, int64_t count,
                      int64_t d)
{
    const int8_t *codes = (const int8_t *)of->codes + from * d;
    const __m512i flip = _mm512_set1_epi8((char)FLIPPED);
    pack_scales(of, from, count, own->key_scales);
    for (int64_t j = 0; j < KEYS; j += SIDE)
        for (int64_t i = 0; i < d; i += SIDE * FOUR) {
            const int64_t fours = least(SIDE, (d - i) / FOUR);
            const __mmask16 there = (__mmask16)((1u << fours) - 1);
            __m512i rows[SIDE];
            for (int64_t r = 0; r < SIDE; r++)
                rows[r] = j + r < count
                              ? _mm512_maskz_loadu_epi32(there, codes + (j + r) * d + i)
                              : _mm512_setzero_si512();
            avl_transpose(rows);
            for (int64_t r = 0; r < fours; r++)
                _mm512_storeu_si512(own->keys + ((i / FOUR + r) * KEYS + j) * FOUR,
                                    _mm512_xor_si512(rows[r], flip));
        }
}

HELPER void pack_values(const room *own, const stored_rows *of, int64_t from, int64_t count,
                        int64_t d)
{
    const int8_t *codes = (const int8_t *)of->codes + from * d;
    pack_scales(of, from, count, own->value_scales);
    for (int64_t j = 0; j < KEYS; j += FOUR)
        for (int64_t i = 0; i < d; i += SIDE) {
            __m128i row[FOUR];
            for (int64_t r = 0; r < FOUR; r++)
                row[r] = j + r < count
                             ? _mm_loadu_si128((const __m128i *)(codes + (j + r) * d + i))
                             : _mm_setzero_si128();
            const __m128i low = _mm_unpacklo_epi8(row[0], row[1]);
            const __m128i high = _mm_unpackhi_epi8(row[0], row[1]);
            const __m128i next_low = _mm_unpacklo_epi8(row[2], row[3]);
            const __m128i next_high = _mm_unpackhi_epi8(row[2], row[3]);
            __m128i *to = (__m128i *)(own->values + j * d + i * FOUR);
            _mm_storeu_si128(to, _mm_unpacklo_epi16(low, next_low));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low, next_low));
            _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high, next_high));
            _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high, next_high));
        }
}

#endif
