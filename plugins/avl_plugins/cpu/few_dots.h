// Scores of codes by products of bytes (AVX-512 VNNI), for few.c. Sums are whole numbers, and the same
// in any order. Sixteen rows lie in the lanes of a register, so that nothing is summed across lanes.
#ifndef AVL_FEW_DOTS_H
#define AVL_FEW_DOTS_H

#include "few_digits.h"

#if defined(__AVX512VNNI__) && !defined(AVL_ON_TILES)

// A query: what its products count for, what a code's offset adds to each digit's, and behind these
// its digits [D / 4, DIGITS], four columns to a word.
typedef struct {
    float factor;
    int32_t offsets[DIGITS];
    int32_t digits[];
} dots_query;

HELPER int64_t dots_words(int64_t d) { return (d + 3) / 4; }

// In floats, of one query, and of so many.
HELPER int64_t query_size(int64_t d)
{
    return (int64_t)(sizeof(dots_query) / sizeof(float)) + dots_words(d) * DIGITS;
}
HELPER int64_t dots_size(int64_t queries, int64_t d) { return queries * query_size(d); }

HELPER void make_dots(const float *q, int64_t queries, int64_t d, float scale, float *to)
{
    memset(to, 0, (size_t)dots_size(queries, d) * sizeof *to);
    for (; queries; queries--, q += d, to += query_size(d)) {
        dots_query *made = (dots_query *)to;
        const float inverse = unit_of(q, d, scale, &made->factor);
        for (int64_t i = 0; i < d; i++) {
            int8_t digits[DIGITS];
            split_number(q[i] * inverse, digits);
            for (int k = 0; k < DIGITS; k++) {
                ((int8_t *)(made->digits + i / 4 * DIGITS + k))[i % 4] = digits[k];
                made->offsets[k] += OFFSET * digits[k];
            }
        }
    }
}

// Scores of so many queries with a block's rows, the words of each in `parts` sums.
HELPER void dots_for(const float *queries, int64_t d, const __m512i *words, lanes scales,
                     float *scores, int64_t stride, int count, int parts)
{
    const int64_t size = query_size(d), all = dots_words(d);
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
        *(lanes *)(scores + g * stride) = joined(found) * scales * all_of(query->factor);
    }
}

// scores[g, j] of all queries, as make_dots made them, and a block's rows.
HELPER void dots_block(int64_t count, int64_t d, const float *queries, const block *of, float *scores,
                       int64_t stride)
{
    __m512i words[MOST_DOTS / 4];
    const lanes scales = lanes_at(of->scales);
    const int64_t size = query_size(d);
    turn_rows(of, d, OFFSET, words);
    int64_t g = 0;
    for (; g + 4 <= count; g += 4)
        dots_for(queries + g * size, d, words, scales, scores + g * stride, stride, 4, 1);
    for (; g + 2 <= count; g += 2)
        dots_for(queries + g * size, d, words, scales, scores + g * stride, stride, 2, 1);
    for (; g < count; g++)
        dots_for(queries + g * size, d, words, scales, scores + g * stride, stride, 1, 4);
}

#else

HELPER void dots_block(int64_t count, int64_t d, const float *queries, const block *of, float *scores,
                       int64_t stride)
{
    (void)count, (void)d, (void)queries, (void)of, (void)scores, (void)stride;
}

#endif

#if !defined(__AVX512VNNI__)

HELPER int64_t dots_size(int64_t queries, int64_t d) { return (void)queries, (void)d, 0; }
HELPER void make_dots(const float *q, int64_t queries, int64_t d, float scale, float *to)
{
    (void)q, (void)queries, (void)d, (void)scale, (void)to;
}

#endif

#endif
