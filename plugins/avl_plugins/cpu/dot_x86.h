// Products of bytes on x86-64, for pieces.h: AVX-512 VNNI, AVX-VNNI or AVX2.
#ifndef AVL_DOT_X86_H
#define AVL_DOT_X86_H

#include <immintrin.h>

// Rows that fill the registers with a span's sums. Those of all spans are registers' too as far as
// these last, and memory that stays in the first cache.
#if defined(__AVX512VNNI__)
enum { LANES = 16, HELD = 4, TOGETHER = 4 };
#else
enum { LANES = 8, HELD = 2, TOGETHER = 2 };
#endif

typedef int32_t whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

// Numbers of binary16 as float32.
HELPER floats of_halves(const void *from)
{
#if defined(__AVX512VNNI__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256(from));
#else
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128(from));
#endif
}

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

// sum + products of each output's four codes with four of x.
HELPER whole add_bytes(whole sum, bytes codes, bytes x, int64_t bits)
{
    (void)bits;
    return (whole)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}

#elif defined(__AVXVNNI__)

enum { FLIPPED = 0x80 };

HELPER whole add_bytes(whole sum, bytes codes, bytes x, int64_t bits)
{
    (void)bits;
    return (whole)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
}

#else

// Sums of two products have 16 bits. With codes up to 255 they might have more, with those from
// -128 to 127 not, as codes of x are none of -128.
enum { FLIPPED = 0 };

HELPER whole add_bytes(whole sum, bytes codes, bytes x, int64_t bits)
{
    __m256i c = (__m256i)codes, v = (__m256i)x;
    __m256i pairs = bits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(v, c))
                              : _mm256_maddubs_epi16(c, v);
    return sum + (whole)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#endif

// Codes of 4 bits as bytes, from 0 for the least: those of the low halves come first.
HELPER __m256i split_bytes(const uint8_t *from)
{
    const __m128i both = _mm_xor_si128(_mm_loadu_si128((const __m128i *)from),
                                       _mm_set1_epi8((char)0x88));
    const __m128i low = _mm_and_si128(both, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
    return _mm256_set_m128i(high, low);
}

// add_bytes with the same four of x for all outputs, and a register of codes of 4 bits. A short one has
// half as many, and behind them numbers that are multiplied with 0.
#if defined(__AVX512VNNI__)

HELPER whole add_dots(whole sum, bytes codes, int32_t x, int64_t bits)
{
    return add_bytes(sum, codes, (bytes)_mm512_set1_epi32(x), bits);
}

HELPER bytes halves_of(const uint8_t *from)
{
    const __m256i both = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)from),
                                          _mm256_set1_epi8((char)0x88));
    const __m256i low = _mm256_and_si256(both, _mm256_set1_epi8(15));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    return (bytes)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

HELPER bytes halves_of_short(const uint8_t *from)
{
    return (bytes)_mm512_zextsi256_si512(split_bytes(from));
}

HELPER bytes short_bytes(const uint8_t *from)
{
    return (bytes)_mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)from));
}

#else

HELPER whole add_dots(whole sum, bytes codes, int32_t x, int64_t bits)
{
    return add_bytes(sum, codes, (bytes)_mm256_set1_epi32(x), bits);
}

HELPER bytes halves_of(const uint8_t *from) { return (bytes)split_bytes(from); }

// No span is shorter than a register.
HELPER bytes halves_of_short(const uint8_t *from) { return halves_of(from); }
HELPER bytes short_bytes(const uint8_t *from) { return *(const bytes *)from; }

#endif

#endif
