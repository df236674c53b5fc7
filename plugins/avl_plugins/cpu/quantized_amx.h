// QuantizedLinear for many rows on the matrix units of Intel's AMX: rows and weights are rounded to
// bf16 and multiplied 16 rows and 16 outputs at a time, with sums in float32.
#ifndef AVL_QUANTIZED_AMX_H
#define AVL_QUANTIZED_AMX_H

#include "quantized.h"

#include <stddef.h>

enum { AVL_AMX_GROUP = 32 }; // rows that are multiplied together

// Rows of x as bf16, in the order in which they are read.
typedef struct avl_amx_rows {
    int64_t rows;
    uint16_t *values; // `avl_amx_values` of them, aligned to 64 bytes
} avl_amx_rows;

// Values of x [rows, inputs], whose last group is filled with zeros.
static inline int64_t avl_amx_values(const avl_packed *weight, int64_t rows)
{
    return (rows + AVL_AMX_GROUP - 1) / AVL_AMX_GROUP * AVL_AMX_GROUP * weight->inputs;
}

// From how many rows on this is as fast as `avl_multiply_tile`: widening a weight pays once it is
// read by many.
enum { AVL_AMX_LEAST_ROWS = 64 };

typedef struct avl_amx_kernels {
    // Rounds a group of rows of x [rows, inputs].
    void (*round)(const avl_packed *weight, const float *x, const avl_amx_rows *to, int64_t group);
    // A thread calls `begin` before, and `end` after, it multiplies.
    void (*begin)(void);
    void (*end)(void);
    // Fills the columns of a tile in y [rows, outputs].
    void (*multiply)(const avl_packed *weight, const avl_amx_rows *x, int64_t tile, float *y);
} avl_amx_kernels;

// NULL if the compiler had no AMX. Whether the processor has, `avl_has_amx` says.
extern const avl_amx_kernels *const avl_amx;

#endif
