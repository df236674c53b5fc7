// An output's codes are multiplied with those of a few rows, a register of both at a time, and each
// span's sums, lane by lane, with its scales. A register of 4-bit codes has the even inputs of a piece
// in its lower half and the odd ones in the upper, as that is what two shifts make of bytes; rows of x
// are put in the same order once.
#include "coded.h"

#if defined(AVL_UNKNOWN) // to the compiler

const avl_coded_kernels *const AVL_LEVEL = NULL;

#else

#include "pieces.h"

#include <string.h>

#define EACH_ROW(r) _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)

enum {
    REGISTER = 4 * LANES,
    ROWS = 4,
    OUTPUTS = 16, // multiplied with some rows at a time: both stay in a core's first cache
};

// Codes that are multiplied at a time: of the shortest spans no more than half a register.
HELPER int64_t piece_of_span(int64_t span) { return span < REGISTER ? span : REGISTER; }

static void order(const avl_coded *w, int8_t *codes)
{
    const int64_t piece = piece_of_span(w->span);
    int8_t given[REGISTER];
    for (int64_t k = 0; w->bits == 4 && k < w->inputs; k += piece) {
        memcpy(given, codes + k, (size_t)piece);
        for (int64_t i = 0; i < piece / 2; i++) {
            codes[k + i] = given[2 * i];
            codes[k + piece / 2 + i] = given[2 * i + 1];
        }
    }
}

// A piece of a weight's codes as they are multiplied: without sign or with it (pieces.h), those of 4
// bits from 0 to 15. Behind a short piece are numbers that are multiplied with 0.
HELPER bytes load_piece(const uint8_t *from, int64_t bits, int is_short)
{
    if (bits == 4)
        return is_short ? halves_of_short(from) : halves_of(from);
    return (is_short ? short_bytes(from) : *(const bytes *)from) ^ FLIPPED;
}

// `rows` of x, as many places in `at`, times an output.
HELPER void multiply_output(const avl_coded *w, const avl_coded_rows *x, const int64_t *at, int rows,
                            int64_t output, float *y, int64_t bits, int64_t span)
{
    const int64_t piece = piece_of_span(span), spans = w->inputs / span;
    const int is_short = piece < REGISTER;
    const uint8_t *codes = w->codes + output * w->inputs * bits / 8;
    const float *scales = w->scales + output * (w->inputs / w->block);
    const int32_t zero = bits == 8 ? FLIPPED : 8; // what the code of 0 is
    floats totals[ROWS] = {0};
    for (int64_t s = 0; s < spans; s++) {
        const float scale = scales[s * span / w->block];
        whole sums[ROWS] = {0};
        EACH_ROW(r) sums[r][0] = -zero * x->sums[at[r] * spans + s];
        for (int64_t k = 0; k < span; k += piece) {
            const bytes own = load_piece(codes + (s * span + k) * bits / 8, bits, is_short);
            EACH_ROW(r) {
                const int8_t *from = x->codes + at[r] * w->inputs + s * span + k;
                const bytes row = is_short ? short_bytes((const uint8_t *)from) : *(const bytes *)from;
                sums[r] = add_bytes(sums[r], own, row, bits);
            }
        }
        EACH_ROW(r) totals[r] += __builtin_convertvector(sums[r], floats) *
                                 (scale * x->scales[at[r] * spans + s]);
    }
    EACH_ROW(r) {
        float lanes[LANES], sum = 0.0f;
        memcpy(lanes, &totals[r], sizeof lanes);
        for (int i = 0; i < LANES; i++)
            sum += lanes[i];
        y[r * w->outputs + output] = sum;
    }
}

HELPER void multiply_span(const avl_coded *w, const avl_coded_rows *x, const int64_t *rows,
                          int64_t count, int64_t first, int64_t end, float *y, int64_t bits,
                          int64_t span)
{
    for (; first < end; first += OUTPUTS) {
        const int64_t last = first + OUTPUTS < end ? first + OUTPUTS : end;
        int64_t row = 0;
        for (; row + ROWS <= count; row += ROWS)
            for (int64_t output = first; output < last; output++)
                multiply_output(w, x, rows + row, ROWS, output, y + row * w->outputs, bits, span);
        for (; row < count; row++)
            for (int64_t output = first; output < last; output++)
                multiply_output(w, x, rows + row, 1, output, y + row * w->outputs, bits, span);
    }
}

#define OF_SPAN(BITS, SPAN) multiply_span(w, x, rows, count, first, end, y, BITS, SPAN)

static void multiply(const avl_coded *w, const avl_coded_rows *x, const int64_t *rows, int64_t count,
                     int64_t first, int64_t end, float *y)
{
    const int is_long = w->span == LONGEST, is_short = w->span == 32;
    if (w->bits == 4)
        is_long ? OF_SPAN(4, LONGEST) : is_short ? OF_SPAN(4, 32) : OF_SPAN(4, 64);
    else
        is_long ? OF_SPAN(8, LONGEST) : is_short ? OF_SPAN(8, 32) : OF_SPAN(8, 64);
}

static const avl_coded_kernels kernels = {order, multiply};
const avl_coded_kernels *const AVL_LEVEL = &kernels;

#endif
