// Weights that are codes of 4 or 8 bits, as panels of bf16.
#include "linear_amx.h"

#if defined(AVL_AMX) // build.py: compilers do not agree on a macro of their own

#include "amx_product.h"
#include "pieces.h"

typedef struct {
    __m512 values[FIELDS];
} floats4;

// Code 0 to 15 as a number, of 32 bits of which the last four are the code.
HELPER __m512 number_of_4(__m512i code)
{
    const __m512 numbers =
        _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_permutexvar_ps(code, numbers);
}

HELPER __m512 centred_of_4(__m512i code)
{
    const __m512 numbers =
        _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return _mm512_permutexvar_ps(code, numbers);
}

// 16 outputs' weights of one input, whose codes are the low bits of 32.
HELPER __m512 weight_of(__m512i code, __m512 scale, __m512 zero, int64_t bits, int has_zeros)
{
    if (bits == 4 && !has_zeros)
        return _mm512_mul_ps(centred_of_4(code), scale);
    __m512 number = bits == 4
                        ? number_of_4(code)
                        : _mm512_cvtepi32_ps(_mm512_and_si512(code, _mm512_set1_epi32(255)));
    return _mm512_mul_ps(_mm512_sub_ps(number, zero), scale);
}

// Four inputs' weights of a field, whose codes are four bytes each, or halves of them.
HELPER void widen_four(uint16_t *to, __m512i codes, int shift, __m512 scale, __m512 zero,
                       int64_t bits, int has_zeros)
{
#define WEIGHT(INPUT)                                                                              \
    weight_of(_mm512_srli_epi32(codes, shift + 8 * (INPUT)), scale, zero, bits, has_zeros)
    _mm512_store_si512(to, avl_pair(WEIGHT(0), WEIGHT(1)));
    _mm512_store_si512(to + 2 * SIDE, avl_pair(WEIGHT(2), WEIGHT(3)));
#undef WEIGHT
}

// A span of a tile, as inputs `at` and following of a panel.
HELPER void widen_span(const avl_packed *w, const uint8_t *piece, panel to, int64_t at, int64_t bits,
                       int has_zeros)
{
    __m512 scales[FIELDS], zeros[FIELDS];
    for (int f = 0; f < FIELDS; f++) {
        scales[f] = (__m512)scales_of(w, piece, f);
        zeros[f] = has_zeros ? _mm512_cvtepi32_ps((__m512i)zeros_of(w, piece, f))
                             : _mm512_set1_ps(128);
    }
    for (int64_t k = 0; k < w->span; k += 4, at += 4)
        for (int f = 0; f < FIELDS; f++) {
            const uint8_t *from = piece + k * TILE * bits / 8 + (bits == 8 ? f : f / 2) * 64;
            widen_four(to[f][at / STEP] + at % STEP * SIDE, _mm512_loadu_si512(from),
                       bits == 4 && f % 2 ? 4 : 0, scales[f], zeros[f], bits, has_zeros);
        }
}

HELPER void widen_spans(const avl_packed *w, int64_t tile, int64_t first, int64_t end, panel to,
                        int64_t bits, int has_zeros)
{
    for (int64_t s = first; s < end; s++)
        widen_span(w, piece_of(w, tile, s), to, (s - first) * w->span, bits, has_zeros);
}

static void widen(const void *weight, int64_t tile, int64_t first, int64_t count, panel to)
{
    const avl_packed *w = weight;
    int64_t span = first / w->span, end = span + count / w->span;
    if (w->bits == 4 && w->has_zeros)
        widen_spans(w, tile, span, end, to, 4, 1);
    else if (w->bits == 4)
        widen_spans(w, tile, span, end, to, 4, 0);
    else if (w->has_zeros)
        widen_spans(w, tile, span, end, to, 8, 1);
    else
        widen_spans(w, tile, span, end, to, 8, 0);
}

void avl_multiply_packed_on_amx(const avl_packed *weight, const avl_amx_rows *x, int64_t tile,
                                float *y)
{
    multiply_all(weight, widen, x, weight->outputs, tile, y);
}

#endif
