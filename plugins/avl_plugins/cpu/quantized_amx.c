#include "quantized_amx.h"

#if defined(AVL_AMX) // build.py: compilers do not agree on a macro of their own

#include "amx.h"
#include "pieces.h"

enum {
    FIELDS = TILE / SIDE,   // a tile's outputs, SIDE at a time
    CHUNK = 128,            // inputs that are widened at a time: the longest span
    BLOCK = 256,            // rows whose sums are kept at a time
    HALVES = AVL_AMX_GROUP / SIDE,
};

// A chunk of a tile's weights as bf16: for every two inputs those of output 0, of output 1 and so on.
typedef uint16_t panel[FIELDS][CHUNK / STEP][MATRIX];

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
        scales[f] = _mm512_loadu_ps(scales_of(w, piece) + f * SIDE);
        zeros[f] = has_zeros ? _mm512_cvtepi32_ps(_mm512_loadu_si512(zeros_of(w, piece) + f * SIDE))
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

static void widen(const avl_packed *w, int64_t tile, int64_t first, int64_t end, panel to)
{
    if (w->bits == 4 && w->has_zeros)
        widen_spans(w, tile, first, end, to, 4, 1);
    else if (w->bits == 4)
        widen_spans(w, tile, first, end, to, 4, 0);
    else if (w->has_zeros)
        widen_spans(w, tile, first, end, to, 8, 1);
    else
        widen_spans(w, tile, first, end, to, 8, 0);
}

// Sums of a group of rows and two fields, [HALVES][FIELDS] matrices, grow by `steps` of inputs; those
// of its first half alone if there is no `second`.
HELPER void add_products(float *sums, const uint16_t *x, int64_t next_half, const uint16_t *weights,
                         int64_t next_field, int64_t steps, int begins, int second)
{
    float *next = sums + FIELDS * SIDE * SIDE;
    if (begins) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + SIDE * SIDE, 64);
        if (second) {
            _tile_loadd(2, next, 64);
            _tile_loadd(3, next + SIDE * SIDE, 64);
        }
    }
    for (int64_t k = 0; k < steps; k++, x += MATRIX, weights += MATRIX) {
        _tile_loadd(4, x, 64);
        _tile_loadd(6, weights, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weights + next_field, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (second) {
            _tile_loadd(5, x + next_half, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + SIDE * SIDE, 64);
    if (second) {
        _tile_stored(2, next, 64);
        _tile_stored(3, next + SIDE * SIDE, 64);
    }
}

// Rows of a group from their matrices [HALVES][FIELDS][SIDE][SIDE].
HELPER void store_group(const avl_packed *w, const float *sums, int64_t tile, int64_t rows, float *y)
{
    __mmask64 outputs = outputs_of(w, tile);
    for (int64_t r = 0; r < rows; r++) {
        const float *from = sums + r / SIDE * FIELDS * SIDE * SIDE + r % SIDE * SIDE;
        for (int f = 0; f < FIELDS; f++)
            _mm512_mask_storeu_ps(y + r * w->outputs + f * SIDE, (__mmask16)(outputs >> f * SIDE),
                                  _mm512_load_ps(from + f * SIDE * SIDE));
    }
}

// Up to BLOCK rows: a chunk of weights is widened once for all of them.
static void multiply_block(const avl_packed *w, const uint16_t *x, int64_t rows, int64_t tile,
                           float *y)
{
    panel weights __attribute__((aligned(64)));
    float sums[BLOCK * TILE] __attribute__((aligned(64)));
    int64_t spans = spans_of(w), at_once = CHUNK / w->span;
    for (int64_t s = 0; s < spans; s += at_once) {
        int64_t end = s + at_once < spans ? s + at_once : spans;
        widen(w, tile, s, end, weights);
        avl_have_stored(weights);
        for (int64_t r = 0; r < rows; r += AVL_AMX_GROUP)
            for (int f = 0; f < FIELDS; f += 2) {
                float *to = sums + r * TILE + f * SIDE * SIDE;
                const uint16_t *from = x + r * w->inputs + s * w->span * SIDE;
                int64_t next_half = SIDE * w->inputs, steps = (end - s) * w->span / STEP;
                if (rows - r > SIDE)
                    add_products(to, from, next_half, weights[f][0], CHUNK * SIDE, steps, !s, 1);
                else
                    add_products(to, from, next_half, weights[f][0], CHUNK * SIDE, steps, !s, 0);
            }
    }
    for (int64_t r = 0; r < rows; r += AVL_AMX_GROUP)
        store_group(w, sums + r * TILE, tile, rows - r < AVL_AMX_GROUP ? rows - r : AVL_AMX_GROUP,
                    y + r * w->outputs + tile * TILE);
}

static void multiply(const avl_packed *w, const avl_amx_rows *x, int64_t tile, float *y)
{
    for (int64_t row = 0; row < x->rows; row += BLOCK)
        multiply_block(w, x->values + row * w->inputs, x->rows - row < BLOCK ? x->rows - row : BLOCK,
                       tile, y + row * w->outputs);
}

// Rows become matrices [HALVES][inputs / STEP][SIDE][STEP].
static void round_group(const avl_packed *w, const float *x, const avl_amx_rows *to, int64_t group)
{
    uint16_t *values = to->values + group * AVL_AMX_GROUP * w->inputs;
    for (int64_t r = 0; r < AVL_AMX_GROUP; r++) {
        int64_t row = group * AVL_AMX_GROUP + r;
        uint16_t *at = values + r / SIDE * SIDE * w->inputs + r % SIDE * STEP;
        const float *from = x + row * w->inputs;
        for (int64_t k = 0; k < w->inputs; k += STEP, at += MATRIX) {
            __m512i pairs = _mm512_setzero_si512();
            if (row < to->rows)
                pairs = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + k + SIDE),
                                                     _mm512_loadu_ps(from + k));
            _mm512_store_si512(at, pairs);
        }
    }
}

static const avl_amx_kernels kernels = {round_group, avl_amx_begin, avl_amx_end, multiply};
const avl_amx_kernels *const avl_amx = &kernels;

#else

const avl_amx_kernels *const avl_amx = NULL;

#endif
