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

// How many of a tile's outputs there are.
HELPER int64_t outputs_of(const avl_packed *w, int64_t tile)
{
    int64_t left = w->outputs - tile * TILE;
    return left < TILE ? left : TILE;
}

#endif
