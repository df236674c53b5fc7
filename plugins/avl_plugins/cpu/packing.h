// Packs weights and rounds rows, for quantized.c: plain C, of which compilers make vectors.
#ifndef AVL_PACKING_H
#define AVL_PACKING_H

#include "halves.h"
#include "pieces.h"

#include <float.h>
#include <string.h>

typedef int8_t some __attribute__((vector_size(LANES), aligned(1), may_alias));

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

// A piece's scales, 0 for outputs that there are none of.
HELPER void pack_scales(const avl_packed *w, const float *scales, int64_t outputs, uint8_t *to)
{
    memset(to, 0, (size_t)scales_bytes(w));
    if (!w->has_halves)
        memcpy(to, scales, (size_t)outputs * sizeof *scales);
    for (int64_t i = 0; w->has_halves && i < outputs; i++)
        ((uint16_t *)to)[i] = to_half(scales[i]);
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
        uint8_t *behind = piece + codes_bytes(w);
        pack_scales(w, scales + of * w->outputs + first, outputs, behind);
        if (w->has_zeros) {
            uint8_t all[TILE];
            read_codes(zeros + of * stride + column, w->bits, outputs, all);
            for (int i = 0; i < TILE; i++)
                ((int16_t *)(behind + scales_bytes(w)))[i] =
                    w->bits == 8 && !FLIPPED ? (int8_t)all[i] : all[i];
        }
    }
}

HELPER whole larger(whole a, whole b)
{
    const whole more = a > b;
    return (a & more) | (b & ~more);
}

// The largest magnitude of a span, as the bits of one: in their order NaN comes last.
HELPER int32_t largest_of(const float *x, int64_t span)
{
    whole tops = {0};
    for (int64_t i = 0; i < span; i += LANES)
        tops = larger(*(const whole *)(x + i) & 0x7fffffff, tops);
    int32_t all[LANES], largest = 0;
    memcpy(all, &tops, sizeof all);
    LOOP for (int j = 0; j < LANES; j++)
        largest = all[j] > largest ? all[j] : largest;
    return largest;
}

// Rounds a span and returns its codes' sum.
HELPER int32_t round_span(const float *x, float factor, int8_t *codes, int64_t span)
{
    whole sums = {0};
    for (int64_t i = 0; i < span; i += LANES) {
        const whole code = nearest(*(const floats *)(x + i) * factor);
        sums += code;
        *(some *)(codes + i) = __builtin_convertvector(code, some);
    }
    int32_t all[LANES], sum = 0;
    memcpy(all, &sums, sizeof all);
    LOOP for (int j = 0; j < LANES; j++)
        sum += all[j];
    return sum;
}

HELPER void round_spans(const float *x, int64_t spans, int64_t span, const avl_rounded *to, int64_t row)
{
    for (int64_t s = 0; s < spans; s++, x += span) {
        const int64_t at = s * to->rows + row;
        int8_t *codes = to->codes + at * span;
        const int32_t top = largest_of(x, span);
        float greatest;
        memcpy(&greatest, &top, sizeof greatest);
        to->scales[at] = greatest / 127.0f;
        to->sums[at] = 0;
        if (greatest > SMALLEST && greatest <= FLT_MAX)
            to->sums[at] = round_span(x, 127.0f / greatest, codes, span);
        else
            memset(codes, 0, (size_t)span);
    }
}

static void round_row(const avl_packed *w, const float *x, const avl_rounded *to, int64_t row)
{
    const int64_t spans = spans_of(w);
    x += row * w->inputs;
    switch (w->span) {
    case 32: round_spans(x, spans, 32, to, row); break;
    case 64: round_spans(x, spans, 64, to, row); break;
    default: round_spans(x, spans, LONGEST, to, row);
    }
}

#endif
