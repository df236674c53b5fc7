// Products of bytes on x86-64, for pieces.h: AVX-512 VNNI, AVX-VNNI or AVX2.
#ifndef AVL_DOT_X86_H
#define AVL_DOT_X86_H

#include <immintrin.h>

// Rows that fill the registers with their sums: of a span and of all of them, or of a span alone.
#if defined(__AVX512VNNI__)
enum { LANES = 16, HELD = 3, TOGETHER = 4 };
#else
enum { LANES = 8, HELD = 2, TOGETHER = 2 };
#endif

typedef int32_t whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

// Whole numbers, of two that are as near the even one.
HELPER whole nearest(floats v)
{
#if defined(__AVX512VNNI__)
    return (whole)_mm512_cvtps_epi32((__m512)v);
#else
    return (whole)_mm256_cvtps_epi32((__m256)v);
#endif
}

#if defined(__AVX512VNNI__)

enum { FLIPPED = 0x80 };

// sum + products of each output's four codes with the four of x.
HELPER whole add_dots(whole sum, bytes codes, int32_t x, int64_t bits)
{
    (void)bits;
    return (whole)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(x));
}

#elif defined(__AVXVNNI__)

enum { FLIPPED = 0x80 };

HELPER whole add_dots(whole sum, bytes codes, int32_t x, int64_t bits)
{
    (void)bits;
    return (whole)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, _mm256_set1_epi32(x));
}

#else

// Sums of two products have 16 bits. With codes up to 255 they might have more, with those from
// -128 to 127 not, as codes of x are none of -128.
enum { FLIPPED = 0 };

HELPER whole add_dots(whole sum, bytes codes, int32_t x, int64_t bits)
{
    __m256i c = (__m256i)codes, v = _mm256_set1_epi32(x);
    __m256i pairs = bits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(v, c))
                              : _mm256_maddubs_epi16(c, v);
    return sum + (whole)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#endif

#endif
