// Packs weights and rounds rows, for quantized.c: plain C, of which compilers make vectors.
#ifndef AVL_PACKING_H
#define AVL_PACKING_H

#include "pieces.h"

#include <float.h>
#include <string.h>

enum { SOME = 32 }; // inputs, of which every span has a multiple

// GCC makes vectors of loops, but takes short ones apart before.
#define LOOP _Pragma("GCC unroll 1")

// Spans of x with nothing larger are taken for zeros: 127 over it would be infinite. So are those
// with something infinite or no number, which their scale then is too, and with it what they add.
#define SMALLEST (127.0f / FLT_MAX)

// An input's signed codes of a tile, as they are multiplied.
HELPER void read_codes(const uint8_t *from, int64_t bits, int64_t outputs, uint8_t to[TILE])
{
    uint8_t given[TILE] = {0};
    if (outputs == TILE)
        memcpy(given, from, (size_t)(TILE * bits / 8));
    else
        memcpy(given, from, (size_t)(outputs * bits / 8));
    for (int i = 0; bits == 8 && i < TILE; i++)
        to[i] = given[i] ^ FLIPPED;
    LOOP for (int i = 0; bits == 4 && i < TILE / 2; i++) {
        to[2 * i] = (given[i] & 15) ^ 8;
        to[2 * i + 1] = (given[i] >> 4) ^ 8;
    }
}

// Four inputs' codes, those of an output together.
HELPER void interleave(uint8_t rows[4][TILE], uint8_t to[4 * TILE])
{
    LOOP for (int i = 0; i < TILE; i++) {
        to[4 * i] = rows[0][i];
        to[4 * i + 1] = rows[1][i];
        to[4 * i + 2] = rows[2][i];
        to[4 * i + 3] = rows[3][i];
    }
}

HELPER void pack_codes(const avl_packed *w, const uint8_t *from, int64_t outputs, uint8_t *piece,
                       int64_t bits)
{
    const int64_t stride = w->outputs * bits / 8;
    uint8_t rows[4][TILE], four[4 * TILE];
    for (int64_t k = 0; k < w->span; k += 4) {
        for (int i = 0; i < 4; i++)
            read_codes(from + (k + i) * stride, bits, outputs, rows[i]);
        interleave(rows, bits == 8 ? piece + k * TILE : four);
        uint8_t *to = piece + k * TILE / 2;
        for (int half = 0; bits == 4 && half < 2; half++)
            for (int i = 0; i < QUARTER; i++)
                to[half * QUARTER + i] = (uint8_t)(four[2 * half * QUARTER + i] |
                                                 four[(2 * half + 1) * QUARTER + i] << 4);
    }
}

static void pack_tile(const avl_packed *w, int64_t tile, const uint8_t *codes, const float *scales,
                      const uint8_t *zeros, int64_t block)
{
    const int64_t stride = w->outputs * w->bits / 8, outputs = outputs_of(w, tile);
    const int64_t first = tile * TILE, column = first * w->bits / 8;
    for (int64_t s = 0; s < spans_of(w); s++) {
        uint8_t *piece = piece_of(w, tile, s);
        const uint8_t *from = codes + s * w->span * stride + column;
        if (w->bits == 4)
            pack_codes(w, from, outputs, piece, 4);
        else
            pack_codes(w, from, outputs, piece, 8);
        int64_t of = s * w->span / block;
        memset((float *)scales_of(w, piece), 0, TILE * sizeof(float));
        memcpy((float *)scales_of(w, piece), scales + of * w->outputs + first,
               (size_t)outputs * sizeof(float));
        if (w->has_zeros) {
            uint8_t all[TILE];
            read_codes(zeros + of * stride + column, w->bits, outputs, all);
            for (int i = 0; i < TILE; i++)
                ((int32_t *)zeros_of(w, piece))[i] = w->bits == 8 && !FLIPPED ? (int8_t)all[i]
                                                                              : all[i];
        }
    }
}

// The largest magnitude of SOME numbers, as the bits of one: in their order NaN comes last.
HELPER uint32_t largest_of(const float *x)
{
    uint32_t bits[SOME], largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < SOME; i++) {
        uint32_t magnitude = bits[i] & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

// Rounds SOME numbers and returns their codes' sum.
HELPER int32_t round_some(const float *x, float factor, int8_t *codes)
{
    int32_t sum = 0;
    for (int i = 0; i < SOME; i++) {
        int32_t code = (int32_t)__builtin_rintf(x[i] * factor);
        codes[i] = (int8_t)code;
        sum += code;
    }
    return sum;
}

static void round_row(const avl_packed *w, const float *x, const avl_rounded *to, int64_t row)
{
    x += row * w->inputs;
    int8_t *codes = to->codes + row * w->inputs;
    for (int64_t s = 0; s < spans_of(w); s++, x += w->span, codes += w->span) {
        uint32_t top = 0;
        for (int64_t i = 0; i < w->span; i += SOME) {
            uint32_t largest = largest_of(x + i);
            top = largest > top ? largest : top;
        }
        float greatest;
        memcpy(&greatest, &top, sizeof greatest);
        int32_t sum = 0;
        if (greatest > SMALLEST && greatest <= FLT_MAX)
            for (int64_t i = 0; i < w->span; i += SOME)
                sum += round_some(x + i, 127.0f / greatest, codes + i);
        else
            memset(codes, 0, (size_t)w->span);
        int64_t at = row * spans_of(w) + s;
        to->scales[at] = greatest / 127.0f;
        to->sums[at] = sum;
    }
}

#endif
