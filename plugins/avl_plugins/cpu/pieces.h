// Where things lie in a packed weight (quantized.h), for the files that write and read it.
#ifndef AVL_PIECES_H
#define AVL_PIECES_H

#include "quantized.h"

#ifndef HELPER
#define HELPER static inline __attribute__((always_inline))
#endif
#define EACH_QUARTER(f) _Pragma("GCC unroll 4") for (int f = 0; f < QUARTERS; f++)

// Registers have LANES numbers of 32 bits; 8 bits become the codes that are multiplied, without
// sign or with it, by FLIPPED.
#if defined(__aarch64__)
#include "dot_neon.h"
#else
#include "dot_x86.h"
#endif

enum {
    QUARTERS = 4,              // of a tile, a register each
    QUARTER = 4 * LANES,       // bytes of a quarter's codes of four inputs
    TILE = QUARTERS * LANES,   // outputs
    LONGEST = 128,             // inputs of a span
};

HELPER int64_t spans_of(const avl_packed *w) { return w->inputs / w->span; }
HELPER int64_t codes_bytes(const avl_packed *w) { return w->span * TILE * w->bits / 8; }
HELPER int64_t scales_bytes(const avl_packed *w)
{
    return TILE * (int64_t)(w->has_halves ? sizeof(uint16_t) : sizeof(float));
}
HELPER int64_t piece_bytes(const avl_packed *w)
{
    return codes_bytes(w) + scales_bytes(w) + (w->has_zeros ? TILE * (int64_t)sizeof(int16_t) : 0);
}
HELPER uint8_t *piece_of(const avl_packed *w, int64_t tile, int64_t span)
{
    return w->pieces + (tile * spans_of(w) + span) * piece_bytes(w);
}

// A register's scales of a piece, and its zero points.
HELPER floats scales_of(const avl_packed *w, const uint8_t *piece, int quarter)
{
    const uint8_t *at = piece + codes_bytes(w) + quarter * (scales_bytes(w) / QUARTERS);
    return w->has_halves ? of_halves(at) : *(const floats *)at;
}
HELPER whole zeros_of(const avl_packed *w, const uint8_t *piece, int quarter)
{
    typedef int16_t shorts __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    const shorts *at = (const shorts *)(piece + codes_bytes(w) + scales_bytes(w));
    return __builtin_convertvector(at[quarter], whole);
}

// How many of a tile's outputs there are.
HELPER int64_t outputs_of(const avl_packed *w, int64_t tile)
{
    int64_t left = w->outputs - tile * TILE;
    return left < TILE ? left : TILE;
}

#endif
