// Where things lie in a packed weight (quantized.h), for the files that write and read it.
#ifndef AVL_PIECES_H
#define AVL_PIECES_H

#include "quantized.h"

#include <immintrin.h>

#ifndef HELPER
#define HELPER static inline __attribute__((always_inline))
#endif

enum { TILE = 64 }; // outputs

// A tile's codes of four inputs, or its sums; a field has 16 outputs.
typedef struct {
    __m512i a, b, c, d;
} whole4;

HELPER int64_t spans_of(const avl_packed *w) { return w->inputs / w->span; }
HELPER int64_t codes_bytes(const avl_packed *w) { return w->span * TILE * w->bits / 8; }
HELPER int64_t piece_bytes(const avl_packed *w)
{
    return codes_bytes(w) + TILE * (int64_t)sizeof(float) * (w->has_zeros ? 2 : 1);
}
HELPER uint8_t *piece_of(const avl_packed *w, int64_t tile, int64_t span)
{
    return w->pieces + (tile * spans_of(w) + span) * piece_bytes(w);
}
HELPER const float *scales_of(const avl_packed *w, const uint8_t *piece)
{
    return (const float *)(piece + codes_bytes(w));
}

HELPER const int32_t *zeros_of(const avl_packed *w, const uint8_t *piece)
{
    return (const int32_t *)(scales_of(w, piece) + TILE);
}

// How many of a tile's outputs there are, as a mask.
HELPER __mmask64 outputs_of(const avl_packed *w, int64_t tile)
{
    int64_t left = w->outputs - tile * TILE;
    return left < TILE ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
}

HELPER void store4(void *to, whole4 v)
{
    __m512i *at = to;
    _mm512_storeu_si512(at, v.a);
    _mm512_storeu_si512(at + 1, v.b);
    _mm512_storeu_si512(at + 2, v.c);
    _mm512_storeu_si512(at + 3, v.d);
}

#endif
