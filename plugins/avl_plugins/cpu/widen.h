// Stored weights as float32, in registers, for the files that read them.
#ifndef AVL_WIDEN_H
#define AVL_WIDEN_H

#include "linear.h"

#include <immintrin.h>

#define HELPER static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

HELPER int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

HELPER const char *row_of(const avl_stored *w, avl_element element, int64_t output)
{
    return (const char *)w->data + output * w->inputs * avl_size_of(element);
}

// LANES elements of a row, from the one at `at` on.
HELPER lanes widen(const char *row, int64_t at, avl_element element)
{
    const char *from = row + at * avl_size_of(element);
    if (element == AVL_SINGLE)
        return *(const lanes *)from;
#if defined(__AVX512F__)
    if (element == AVL_BYTE)
        return (lanes)_mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
    __m256i v = _mm256_loadu_si256((const __m256i *)from);
    if (element == AVL_HALF)
        return (lanes)_mm512_cvtph_ps(v);
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16);
#else
    if (element == AVL_BYTE)
        return (lanes)_mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
    __m128i v = _mm_loadu_si128((const __m128i *)from);
    if (element == AVL_HALF)
        return (lanes)_mm256_cvtph_ps(v);
    return (lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16);
#endif
}

#endif
