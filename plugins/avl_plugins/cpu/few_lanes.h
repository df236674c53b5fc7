// Registers of numbers, for few.c. Sums are taken in one order, which does not depend on how many
// query rows there are or where a row lies: build.py does not let compilers choose another.
#ifndef AVL_FEW_LANES_H
#define AVL_FEW_LANES_H

#include "exponent.h"
#include "row_lanes.h"

HELPER lanes lanes_at(const float *from) { return *(const lanes *)from; }

// a * b + c, rounded once where the processor does so.
#if defined(__AVX512F__)
HELPER lanes fma_of(lanes a, lanes b, lanes c)
{
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
HELPER lanes all_of(float x) { return (lanes)_mm512_set1_ps(x); }
#elif defined(__AVX2__)
HELPER lanes fma_of(lanes a, lanes b, lanes c)
{
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
HELPER lanes all_of(float x) { return (lanes)_mm256_set1_ps(x); }
#elif defined(__aarch64__)
HELPER lanes fma_of(lanes a, lanes b, lanes c)
{
    return (lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
HELPER lanes all_of(float x) { return (lanes)vdupq_n_f32(x); }
#else
HELPER lanes fma_of(lanes a, lanes b, lanes c) { return a * b + c; }
HELPER lanes all_of(float x) { return (lanes){x, x, x, x}; }
#endif

#if defined(__AVX2__) || defined(__aarch64__)
HELPER float fma_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
HELPER float fma_one(float a, float b, float c) { return a * b + c; }
#endif

HELPER float greatest_lane(lanes a)
{
    float of[LANES], top;
    memcpy(of, &a, sizeof of);
    top = of[0];
    for (int i = 1; i < LANES; i++)
        top = of[i] > top ? of[i] : top;
    return top;
}

// The sum of a vector's lanes, halves first.
HELPER float lane_sum(lanes a)
{
    float of[LANES];
    memcpy(of, &a, sizeof of);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            of[i] += of[i + half];
    return of[0];
}

// x[j] becomes e ** (x[j] - top), where top is at least as great; of so many, LANES at a time.
HELPER void exponents_of(float *restrict x, int64_t count, float top)
{
#if defined(__AVX512F__) // avl_exp, with instructions that compilers do not find for it
    const __m512 lowest = _mm512_set1_ps(-87.0f), one = _mm512_set1_ps(1.0f);
    for (int64_t j = 0; j < count; j += LANES) {
        const __m512 given = _mm512_sub_ps(_mm512_loadu_ps(x + j), _mm512_set1_ps(top));
        const __mmask16 counts = _mm512_cmp_ps_mask(given, lowest, _CMP_NLT_UQ); // NaN does, too
        const __m512 bounded = _mm512_mask_mov_ps(lowest, counts, given);
        const __m512 n =
            _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(1.44269504088896341f)), 8);
        __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), bounded);
        r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
        __m512 p = _mm512_set1_ps(1.9875691500e-4f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
        p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, one));
        _mm512_storeu_ps(x + j, _mm512_maskz_scalef_ps(counts, p, n));
    }
#else
    for (int64_t j = 0; j < count; j++)
        x[j] = avl_exp(x[j] - top);
#endif
}

#endif
