// Registers of numbers, and what kernels of attention do with them.
#ifndef AVL_ROW_LANES_H
#define AVL_ROW_LANES_H

#include "ahead.h"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Sums that are found together are several times WIDE registers, of the 32 or 16 that there are.
#if defined(__AVX512F__)
enum { LANES = 16, WIDE = 4 };
#elif defined(__AVX2__)
enum { LANES = 8, WIDE = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, WIDE = 4 };
#else
enum { LANES = 4, WIDE = 2 };
#endif

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

// The greater of each lane; in C, compilers make no vectors of it.
#if defined(__AVX512F__)
HELPER lanes greater(lanes a, lanes b) { return (lanes)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
HELPER lanes greater(lanes a, lanes b) { return (lanes)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__aarch64__)
HELPER lanes greater(lanes a, lanes b)
{
    return (lanes)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
}
#else
HELPER lanes greater(lanes a, lanes b)
{
    for (int i = 0; i < LANES; i++)
        a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
#endif

// LANES codes of 8 bits as numbers.
HELPER lanes of_bytes(const void *codes)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes)));
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(codes)));
#elif defined(__aarch64__)
    int32_t four;
    memcpy(&four, codes, sizeof four);
    const int16x8_t wider = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (lanes)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wider)));
#else
    const int8_t *of = codes;
    return (lanes){of[0], of[1], of[2], of[3]};
#endif
}

// The sum of each vector's lanes, as the lanes of one; of each in the same order.
#if defined(__AVX512F__)
HELPER lanes sums_of(const lanes of[LANES])
{
    __m512 two[8], four[4], halves[2];
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++)
    {
        __m512 a = (__m512)of[2 * i], b = (__m512)of[2 * i + 1];
        two[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
    {
        __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) halves[i] =
        _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                      _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
    return (lanes)_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
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
    return (lanes)_mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
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
        sums[i] = (of[i][0] + of[i][1]) + (of[i][2] + of[i][3]);
    return sums;
}
#endif

#endif
