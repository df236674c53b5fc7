// Numbers as whole ones of 24 bits, three digits of 8, which is as exact as float32 sums are: what
// codes are multiplied with as bytes, for few.c.
#ifndef AVL_FEW_DIGITS_H
#define AVL_FEW_DIGITS_H

#include "few_lanes.h"
#include "few_places.h"

// Compilers' names for AMX.
#if defined(__AMX_INT8__) || defined(__AMXINT8__)
#define AVL_ON_TILES
#endif

#if defined(__AVX512VNNI__)

#include "transpose.h"

#include <float.h>
#include <math.h>

// The largest head that is computed so, codes of others are widened to float32: what values are turned
// into has to stay in caches, and sums of two digits in 32 bits.
#if defined(AVL_ON_TILES)
enum { MOST_DOTS = 128 };
#else
enum { MOST_DOTS = 256 };
#endif
enum { DIGITS = 3, OFFSET = 128 };
#define MOST_WHOLE (127 * 65536)

// What a query's numbers are multiplied with to become whole ones: 0 where they are as good as none.
// `factor` is what products with these count for, NaN where the query has such numbers.
HELPER float unit_of(const float *q, int64_t d, float scale, float *factor)
{
    float largest = 0.0f;
    int finite = 1;
    for (int64_t i = 0; i < d; i++) {
        const float magnitude = fabsf(q[i]);
        finite &= magnitude <= FLT_MAX;
        largest = magnitude > largest ? magnitude : largest;
    }
    const float unit = largest / MOST_WHOLE;
    *factor = finite ? scale * unit : NAN;
    return finite && unit >= FLT_MIN ? 1.0f / unit : 0.0f;
}

// Digits with a sign, the highest first.
HELPER void split_number(float number, int8_t digits[DIGITS])
{
    const int32_t v = (int32_t)rintf(number);
    const int32_t high = (v + 128 * 256 + 128) >> 16, rest = v - high * 65536;
    const int32_t middle = (rest + 128) >> 8;
    digits[0] = (int8_t)high;
    digits[1] = (int8_t)middle;
    digits[2] = (int8_t)(rest - middle * 256);
}

// Sums of products with each digit as sums of those with the numbers.
HELPER lanes joined(const __m512i found[DIGITS])
{
    const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(found[1], 8), found[2]);
    return fma_of((lanes)_mm512_cvtepi32_ps(found[0]), all_of(65536.0f),
                  (lanes)_mm512_cvtepi32_ps(low));
}

// words[i] becomes columns [4 * i, 4 * i + 4) of each row; `offset` takes codes' signs, or is 0.
HELPER void turn_rows(const block *of, int64_t d, int offset, __m512i words[MOST_DOTS / 4])
{
    for (int64_t i = 0; i < d; i += 4 * BLOCK) {
        const int64_t left = d - i;
        const __mmask64 there = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
        __m512i rows[SIDE];
        _Pragma("GCC unroll 16") for (int j = 0; j < BLOCK; j++)
        {
            const char *row = of->rows + j * d + i;
            rows[j] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, row),
                                       _mm512_set1_epi8((char)offset));
        }
        avl_transpose(rows);
        for (int w = 0; w < SIDE; w++)
            words[i / 4 + w] = rows[w];
    }
}

#else

enum { MOST_DOTS = 0 };

#endif

#endif
