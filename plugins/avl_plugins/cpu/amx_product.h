// Products of rows in bf16 with a tile of weights, of which a chunk of inputs is widened at a time:
// what linears of all kinds of weights share.
#ifndef AVL_AMX_PRODUCT_H
#define AVL_AMX_PRODUCT_H

#include "amx.h"
#include "linear_amx.h"

#define HELPER static inline __attribute__((always_inline))

enum {
    FIELDS = AVL_AMX_TILE / SIDE, // a tile's outputs, SIDE at a time
    CHUNK = 256,                  // inputs that are widened at a time
    HALVES = AVL_AMX_GROUP / SIDE,
};

// A chunk of a tile's weights as bf16: for every two inputs those of output 0, of output 1 and so on.
typedef uint16_t panel[FIELDS][CHUNK / STEP][MATRIX];

// Fills a panel with inputs [first, first + count) of a tile.
typedef void widen_chunk(const void *weight, int64_t tile, int64_t first, int64_t count, panel to);

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
HELPER void store_group(const float *sums, int64_t tile, int64_t rows, int64_t outputs, float *y)
{
    int64_t left = outputs - tile * AVL_AMX_TILE;
    __mmask64 there = left < AVL_AMX_TILE ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
    for (int64_t r = 0; r < rows; r++) {
        const float *from = sums + r / SIDE * FIELDS * SIDE * SIDE + r % SIDE * SIDE;
        for (int f = 0; f < FIELDS; f++)
            _mm512_mask_storeu_ps(y + r * outputs + f * SIDE, (__mmask16)(there >> f * SIDE),
                                  _mm512_load_ps(from + f * SIDE * SIDE));
    }
}

// A block of rows: a chunk of weights is widened once for all of them, and two fields of it stay in
// the first cache while rows pass by.
HELPER void multiply_all(const void *weight, widen_chunk *widen, const avl_amx_rows *x,
                         int64_t outputs, int64_t tile, float *y)
{
    const int64_t depth = avl_amx_depth(x->inputs), rows = x->rows;
    panel weights __attribute__((aligned(64)));
    float sums[AVL_AMX_BLOCK * AVL_AMX_TILE] __attribute__((aligned(64)));
    const int64_t next_half = SIDE * depth;
    for (int64_t k = 0; k < depth; k += CHUNK) {
        int64_t count = k + CHUNK < depth ? CHUNK : depth - k;
        widen(weight, tile, k, count, weights);
        avl_have_stored(weights);
        for (int f = 0; f < FIELDS; f += 2)
            for (int64_t r = 0; r < rows; r += AVL_AMX_GROUP) {
                float *to = sums + r * AVL_AMX_TILE + f * SIDE * SIDE;
                const uint16_t *from = x->values + r * depth + k * SIDE;
                if (rows - r > SIDE)
                    add_products(to, from, next_half, weights[f][0], CHUNK * SIDE, count / STEP, !k, 1);
                else
                    add_products(to, from, next_half, weights[f][0], CHUNK * SIDE, count / STEP, !k, 0);
            }
    }
    for (int64_t r = 0; r < rows; r += AVL_AMX_GROUP)
        store_group(sums + r * AVL_AMX_TILE, tile,
                    rows - r < AVL_AMX_GROUP ? rows - r : AVL_AMX_GROUP, outputs,
                    y + r * outputs + tile * AVL_AMX_TILE);
}

#endif
