// Scores and sums of values of rows that are codes: what attention.c reads them with.
#ifndef AVL_STEP_CODES_H
#define AVL_STEP_CODES_H

#include "ahead.h"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

// LANES codes as numbers.
HELPER lanes of_codes(const int8_t *codes)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
#elif defined(__aarch64__)
    int32_t four;
    memcpy(&four, codes, sizeof four);
    const int16x8_t wider = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (lanes)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wider)));
#else
    return (lanes){codes[0], codes[1], codes[2], codes[3]};
#endif
}

// The sum of each vector's lanes, as the lanes of one.
#if defined(__AVX512F__)
HELPER lanes sums_of(const lanes of[LANES])
{
    __m512 two[8], four[4], halves[2];
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++)
    {
        __m512 a = (__m512)of[2 * i], b = (__m512)of[2 * i + 1];
        two[i] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
    {
        __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) +
                  _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) halves[i] =
        _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88) +
        _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd);
    return (lanes)(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88) +
                   _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}
#elif defined(__AVX2__)
HELPER lanes sums_of(const lanes of[LANES])
{
    __m256 two[4], four[2];
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) two[i] =
        _mm256_hadd_ps((__m256)of[2 * i], (__m256)of[2 * i + 1]);
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) four[i] =
        _mm256_hadd_ps(two[2 * i], two[2 * i + 1]);
    return (lanes)(_mm256_permute2f128_ps(four[0], four[1], 0x20) +
                   _mm256_permute2f128_ps(four[0], four[1], 0x31));
}
#elif defined(__aarch64__)
HELPER lanes sums_of(const lanes of[LANES])
{
    return (lanes)vpaddq_f32(vpaddq_f32((float32x4_t)of[0], (float32x4_t)of[1]),
                             vpaddq_f32((float32x4_t)of[2], (float32x4_t)of[3]));
}
#else
HELPER lanes sums_of(const lanes of[LANES])
{
    lanes sums;
    for (int i = 0; i < LANES; i++)
        sums[i] = of[i][0] + of[i][1] + of[i][2] + of[i][3];
    return sums;
}
#endif

// scores[g, j] = scale * scales[j] * q[g] . codes[j], for so many heads and rows: LANES in all.
HELPER void score_block(const float *q, int64_t d, const int8_t *codes, const float *scales,
                        float scale, float *scores, int64_t stride, int heads, int rows)
{
    lanes sum[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        lanes key[LANES];
        _Pragma("GCC unroll 16") for (int j = 0; j < rows; j++) key[j] = of_codes(codes + j * d + i);
        _Pragma("GCC unroll 16") for (int g = 0; g < heads; g++)
        {
            const lanes query = *(const lanes *)(q + g * d + i);
            _Pragma("GCC unroll 16") for (int j = 0; j < rows; j++)
                sum[g * rows + j] += query * key[j];
        }
    }
    float sums[LANES] __attribute__((aligned(64)));
    *(lanes *)sums = sums_of(sum);
    for (int g = 0; g < heads; g++)
        for (int j = 0; j < rows; j++) {
            float one = sums[g * rows + j];
            for (int64_t k = i; k < d; k++)
                one += q[g * d + k] * (float)codes[j * d + k];
            scores[g * stride + j] = scale * scales[j] * one;
        }
}

// The same for so many heads and LANES rows.
HELPER void score_lanes(const float *q, int64_t d, const int8_t *codes, const float *scales,
                        float scale, float *scores, int64_t stride, int heads)
{
    const int rows = LANES / heads;
    for (int j = 0; j < LANES; j += rows)
        score_block(q, d, codes + j * d, scales + j, scale, scores + j, stride, heads, rows);
}

// The same for a group of heads, of any number of rows.
HELPER void score_codes(int64_t group, float scale, int64_t d, const float *q, const int8_t *codes,
                        const float *scales, int64_t rows, float *scores, int64_t stride)
{
    int64_t j = 0;
    for (; j + LANES <= rows; j += LANES) {
        const int8_t *from = codes + j * d;
        const float *by = scales + j;
        float *to = scores + j;
        fetch(from + AHEAD * group, LANES * d);
        int64_t g = 0;
        for (; g + 4 <= group; g += 4)
            score_lanes(q + g * d, d, from, by, scale, to + g * stride, stride, 4);
        for (; g + 2 <= group; g += 2)
            score_lanes(q + g * d, d, from, by, scale, to + g * stride, stride, 2);
        for (; g < group; g++)
            score_lanes(q + g * d, d, from, by, scale, to + g * stride, stride, 1);
    }
    for (; j < rows; j++)
        for (int64_t g = 0; g < group; g++) {
            float sum = 0.0f;
            for (int64_t i = 0; i < d; i++)
                sum += q[g * d + i] * (float)codes[j * d + i];
            scores[g * stride + j] = scale * scales[j] * sum;
        }
}

// out[g] += the sum of weights[g, j] * scales[j] * codes[j] over so many rows, for so many heads and
// lanes from column `i` on.
HELPER void add_lanes(const float *weights, int64_t stride, const float *scales,
                      const int8_t *codes, int64_t rows, int64_t d, float *out, int64_t i, int heads,
                      int wide)
{
    lanes sum[4][4];
    _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            sum[g][x] = *(const lanes *)(out + g * d + i + x * LANES);
    for (int64_t j = 0; j < rows; j++) {
        lanes value[4];
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            value[x] = of_codes(codes + j * d + i + x * LANES);
        _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
        {
            const float weight = weights[g * stride + j] * scales[j];
            _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++) sum[g][x] += weight * value[x];
        }
    }
    _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            *(lanes *)(out + g * d + i + x * LANES) = sum[g][x];
}

// Sums that fit the registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
enum { WIDE = 4 };
#else
enum { WIDE = 2 };
#endif

HELPER void add_heads(const float *weights, int64_t stride, const float *scales,
                      const int8_t *codes, int64_t rows, int64_t d, float *out, int heads)
{
    int64_t i = 0;
    for (; i + WIDE * LANES <= d; i += WIDE * LANES)
        add_lanes(weights, stride, scales, codes, rows, d, out, i, heads, WIDE);
    for (; i + LANES <= d; i += LANES)
        add_lanes(weights, stride, scales, codes, rows, d, out, i, heads, 1);
    for (; i < d; i++)
        for (int g = 0; g < heads; g++)
            for (int64_t j = 0; j < rows; j++)
                out[g * d + i] += weights[g * stride + j] * scales[j] * (float)codes[j * d + i];
}

// The same for a group of heads: a block of rows at a time, which stays in the first cache.
HELPER void add_codes(int64_t group, int64_t d, const float *weights, int64_t stride,
                      const int8_t *codes, const float *scales, int64_t rows, float *out)
{
    enum { BLOCK = 16 };
    for (int64_t j = 0; j < rows; j += BLOCK) {
        const int64_t count = least(BLOCK, rows - j);
        const int8_t *from = codes + j * d;
        const float *by = scales + j, *share = weights + j;
        fetch(from + AHEAD * group, count * d);
        int64_t g = 0;
        for (; g + 4 <= group; g += 4)
            add_heads(share + g * stride, stride, by, from, count, d, out + g * d, 4);
        for (; g + 2 <= group; g += 2)
            add_heads(share + g * stride, stride, by, from, count, d, out + g * d, 2);
        for (; g < group; g++)
            add_heads(share + g * stride, stride, by, from, count, d, out + g * d, 1);
    }
}

#endif
