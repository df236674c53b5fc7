// Linear layers of many rows on the matrix units of Intel's AMX: rows and weights are rounded to bf16
// and multiplied 16 rows and 16 outputs at a time, with sums in float32.
#ifndef AVL_LINEAR_AMX_H
#define AVL_LINEAR_AMX_H

#include "linear.h"
#include "quantized.h"

#include <stddef.h>

enum {
    AVL_AMX_GROUP = 32, // rows that are multiplied together
    AVL_AMX_TILE = 64,  // outputs that are, at most
    AVL_AMX_BLOCK = 640, // rows that all outputs are found for before the next rows, at most
    AVL_AMX_STEP = 32,  // inputs: the last of them are filled with zeros
};

// Rows of x [rows, inputs] as bf16, in the order in which they are read.
typedef struct avl_amx_rows {
    int64_t rows, inputs;
    uint16_t *values; // `avl_amx_values` of them, aligned to 64 bytes
} avl_amx_rows;

static inline int64_t avl_amx_depth(int64_t inputs)
{
    return (inputs + AVL_AMX_STEP - 1) / AVL_AMX_STEP * AVL_AMX_STEP;
}

static inline int64_t avl_amx_groups(int64_t rows) { return (rows + AVL_AMX_GROUP - 1) / AVL_AMX_GROUP; }
static inline int64_t avl_amx_tiles(int64_t outputs) { return (outputs + AVL_AMX_TILE - 1) / AVL_AMX_TILE; }

// Values of x, whose last group is filled with zeros.
static inline int64_t avl_amx_values(int64_t rows, int64_t inputs)
{
    return avl_amx_groups(rows) * AVL_AMX_GROUP * avl_amx_depth(inputs);
}

// Rows of a block, but for the last: blocks are as large as each other, as widening weights for a few
// rows that are left takes as long as for many. What is read of x for a tile is still in a core's
// second cache for the next one.
static inline int64_t avl_amx_block(int64_t rows)
{
    const int64_t groups = avl_amx_groups(rows), blocks = (rows + AVL_AMX_BLOCK - 1) / AVL_AMX_BLOCK;
    return (groups + blocks - 1) / blocks * AVL_AMX_GROUP;
}

static inline int64_t avl_amx_blocks(int64_t rows)
{
    const int64_t block = avl_amx_block(rows);
    return (rows + block - 1) / block;
}

// The block of x from row `first` on.
static inline avl_amx_rows avl_amx_part(const avl_amx_rows *x, int64_t first)
{
    const int64_t block = avl_amx_block(x->rows), left = x->rows - first;
    return (avl_amx_rows){left < block ? left : block, x->inputs,
                          x->values + first * avl_amx_depth(x->inputs)};
}

// From how many rows on this is as fast as kernels without it: widening a weight pays once it is read
// by many.
enum { AVL_AMX_LEAST_ROWS = 64 };

typedef struct avl_amx_kernels {
    // Rounds a group of rows of x.
    void (*round)(const float *x, const avl_amx_rows *to, int64_t group);
    // A thread calls `begin` before, and `end` after, it multiplies.
    void (*begin)(void);
    void (*end)(void);
    // Fill the columns of a tile in y [rows, outputs] for a block of rows.
    void (*multiply_packed)(const avl_packed *weight, const avl_amx_rows *x, int64_t tile, float *y);
    void (*multiply_stored)(const avl_stored *weight, const avl_amx_rows *x, int64_t tile, float *y);
} avl_amx_kernels;

// NULL if the compiler had no AMX. Whether the processor has, `avl_has_amx` says.
extern const avl_amx_kernels *const avl_amx;

// Of quantized_amx.c, for the table above.
void avl_multiply_packed_on_amx(const avl_packed *weight, const avl_amx_rows *x, int64_t tile,
                                float *y);

#endif
