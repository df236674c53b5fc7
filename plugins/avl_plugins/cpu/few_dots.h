// Scores of codes by products of bytes (AVX-512 VNNI), for few.c: a query becomes whole numbers
// of 24 bits, three digits of 8, which is as exact as float32 sums are. Sums are whole numbers, and
// the same in any order. Sixteen rows lie in the lanes of a register, so that nothing is summed
// across lanes.
#ifndef AVL_FEW_DOTS_H
#define AVL_FEW_DOTS_H

#include "few_lanes.h"
#include "few_places.h"

#if defined(__AVX512VNNI__)

#include "transpose.h"

#include <float.h>
#include <math.h>

// Of larger heads sums of two digits might have more than 32 bits.
enum { MOST_DOTS = 256, DIGITS = 3, OFFSET = 128 };
#define MOST_WHOLE (127 * 65536)

// A query: what its products count for, what a code's offset adds to each digit's, and behind these
// its digits [D / 4, DIGITS], four columns to a word.
typedef struct {
    float factor;
    int32_t offsets[DIGITS];
    int32_t digits[];
} dots_query;

HELPER int64_t dots_words(int64_t d) { return (d + 3) / 4; }

// In floats.
HELPER int64_t dots_size(int64_t d)
{
    return (int64_t)(sizeof(dots_query) / sizeof(float)) + dots_words(d) * DIGITS;
}

HELPER void make_dots(const float *q, int64_t d, float scale, float *to)
{
    dots_query *made = (dots_query *)to;
    float largest = 0.0f;
    int finite = 1;
    for (int64_t i = 0; i < d; i++) {
        const float magnitude = fabsf(q[i]);
        finite &= magnitude <= FLT_MAX;
        largest = magnitude > largest ? magnitude : largest;
    }
    const float unit = largest / MOST_WHOLE;
    memset(to, 0, (size_t)dots_size(d) * sizeof *to);
    made->factor = finite ? scale * unit : NAN;
    if (!finite || unit < FLT_MIN)
        return;
    for (int64_t i = 0; i < d; i++) {
        const int32_t v = (int32_t)rintf(q[i] / unit);
        const int32_t high = (v + 128 * 256 + 128) >> 16, rest = v - high * 65536;
        const int32_t middle = (rest + 128) >> 8, digits[DIGITS] = {high, middle, rest - middle * 256};
        for (int k = 0; k < DIGITS; k++) {
            ((int8_t *)(made->digits + i / 4 * DIGITS + k))[i % 4] = (int8_t)digits[k];
            made->offsets[k] += OFFSET * digits[k];
        }
    }
}

// words[i] becomes columns [4 * i, 4 * i + 4) of each row, as codes without a sign.
HELPER void turn_rows(const block *of, int64_t d, __m512i words[MOST_DOTS / 4])
{
    for (int64_t i = 0; i < d; i += 4 * BLOCK) {
        const int64_t left = d - i;
        const __mmask64 there = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
        __m512i rows[SIDE];
        _Pragma("GCC unroll 16") for (int j = 0; j < BLOCK; j++)
        {
            const char *row = of->rows + j * d + i;
            rows[j] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, row),
                                       _mm512_set1_epi8((char)OFFSET));
        }
        avl_transpose(rows);
        for (int64_t w = 0; w < least(SIDE, (left + 3) / 4); w++)
            words[i / 4 + w] = rows[w];
    }
}

// Scores of so many queries with a block's rows, the words of each in `parts` sums.
HELPER void dots_for(const float *queries, int64_t d, const __m512i *words, lanes scales,
                     float *scores, int64_t stride, int count, int parts)
{
    const int64_t size = dots_size(d), all = dots_words(d);
    __m512i sum[4][DIGITS] = {{{0}}};
    int64_t w = 0;
    for (; w + parts <= all; w += parts)
        _Pragma("GCC unroll 4") for (int x = 0; x < parts; x++)
            _Pragma("GCC unroll 4") for (int g = 0; g < count; g++)
            {
                const int32_t *digits = ((const dots_query *)(queries + g * size))->digits;
                _Pragma("GCC unroll 3") for (int k = 0; k < DIGITS; k++) sum[g + x][k] =
                    _mm512_dpbusd_epi32(sum[g + x][k], words[w + x],
                                        _mm512_set1_epi32(digits[(w + x) * DIGITS + k]));
            }
    for (; w < all; w++)
        _Pragma("GCC unroll 3") for (int k = 0; k < DIGITS; k++)
        {
            const int32_t *digits = ((const dots_query *)queries)->digits;
            sum[0][k] = _mm512_dpbusd_epi32(sum[0][k], words[w],
                                            _mm512_set1_epi32(digits[w * DIGITS + k]));
        }
    _Pragma("GCC unroll 4") for (int g = 0; g < count; g++)
    {
        const dots_query *query = (const dots_query *)(queries + g * size);
        __m512i found[DIGITS];
        _Pragma("GCC unroll 3") for (int k = 0; k < DIGITS; k++)
        {
            found[k] = sum[g][k];
            _Pragma("GCC unroll 4") for (int x = 1; x < parts; x++)
                found[k] = _mm512_add_epi32(found[k], sum[x][k]);
            found[k] = _mm512_sub_epi32(found[k], _mm512_set1_epi32(query->offsets[k]));
        }
        const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(found[1], 8), found[2]);
        const lanes total = fma_of((lanes)_mm512_cvtepi32_ps(found[0]), all_of(65536.0f),
                                   (lanes)_mm512_cvtepi32_ps(low));
        *(lanes *)(scores + g * stride) = total * scales * all_of(query->factor);
    }
}

// scores[g, j] of all queries, as make_dots made them, and a block's rows.
HELPER void dots_block(int64_t count, int64_t d, const float *queries, const block *of, float *scores,
                       int64_t stride)
{
    __m512i words[MOST_DOTS / 4];
    const lanes scales = lanes_at(of->scales);
    const int64_t size = dots_size(d);
    turn_rows(of, d, words);
    int64_t g = 0;
    for (; g + 4 <= count; g += 4)
        dots_for(queries + g * size, d, words, scales, scores + g * stride, stride, 4, 1);
    for (; g + 2 <= count; g += 2)
        dots_for(queries + g * size, d, words, scales, scores + g * stride, stride, 2, 1);
    for (; g < count; g++)
        dots_for(queries + g * size, d, words, scales, scores + g * stride, stride, 1, 4);
}

#else

// Codes are widened to float32 here.
enum { MOST_DOTS = 0 };
HELPER int64_t dots_size(int64_t d) { return (void)d, 0; }
HELPER void make_dots(const float *q, int64_t d, float scale, float *to)
{
    (void)q, (void)d, (void)scale, (void)to;
}
HELPER void dots_block(int64_t count, int64_t d, const float *queries, const block *of, float *scores,
                       int64_t stride)
{
    (void)count, (void)d, (void)queries, (void)of, (void)scores, (void)stride;
}

#endif

#endif
