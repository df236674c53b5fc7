// Registers of AVX2 or AVX-512, for widen.h.
#ifndef AVL_LANES_X86_H
#define AVL_LANES_X86_H

#include <immintrin.h>

#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 32
#else
#define LANES 8
#define REGISTERS 16
#endif

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef __m128 four_sums;

#if defined(__AVX512F__)

HELPER lanes from_bytes(const void *from)
{
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
}
HELPER lanes from_halves(const void *from)
{
    return (lanes)_mm512_cvtph_ps(_mm256_loadu_si256(from));
}
HELPER lanes from_bfloats(const void *from)
{
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
}

HELPER __m256 fold(lanes v)
{
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
}

#else

HELPER lanes from_bytes(const void *from)
{
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from)));
}
HELPER lanes from_halves(const void *from)
{
    return (lanes)_mm256_cvtph_ps(_mm_loadu_si128(from));
}
HELPER lanes from_bfloats(const void *from)
{
    return (lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(from)), 16);
}

HELPER __m256 fold(lanes v) { return (__m256)v; }

#endif

HELPER __m128 fold_again(__m256 v)
{
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

// A register's total, in the order of `totals`.
HELPER float total(lanes v)
{
    __m256 pairs = _mm256_hadd_ps(fold(v), fold(v));
    return _mm_cvtss_f32(fold_again(_mm256_hadd_ps(pairs, pairs)));
}

// The totals of four.
HELPER four_sums totals(const lanes v[4])
{
    __m256 a = _mm256_hadd_ps(fold(v[0]), fold(v[1])), b = _mm256_hadd_ps(fold(v[2]), fold(v[3]));
    return fold_again(_mm256_hadd_ps(a, b));
}

HELPER void store_sums(float *to, four_sums v, int adds)
{
    _mm_storeu_ps(to, adds ? _mm_add_ps(_mm_loadu_ps(to), v) : v);
}

#endif
