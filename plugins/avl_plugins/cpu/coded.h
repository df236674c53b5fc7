// Products with one weight of a stack of codes of 4 or 8 bits, read where it lies: its outputs come
// first, as experts have them (stacked.h has those without scales).
#ifndef AVL_CODED_H
#define AVL_CODED_H

#include "quantized.h"

typedef struct avl_coded {
    int64_t inputs, outputs;
    int64_t block; // inputs that share a scale
    int64_t span;  // inputs of x that share one, of 32, 64 or 128: a divisor of the block
    int64_t bits;
    const uint8_t *codes; // [outputs, inputs], signed; of 4 bits an even input's in the low half
    const float *scales;  // [outputs, inputs / block]
} avl_coded;

// Rows of x, rounded as quantized.h's kernels round one by itself. A row lies in one piece, as those
// that an expert has are anywhere among all.
typedef struct avl_coded_rows {
    int8_t *codes; // [rows, inputs]
    float *scales; // [rows, inputs / span]
    int32_t *sums; // the same
} avl_coded_rows;

// What coded.c is compiled to for one level of instructions.
typedef struct avl_coded_kernels {
    // Puts a row's codes in the order in which `multiply` reads them.
    void (*order)(const avl_coded *weight, int8_t *codes);
    // Fills columns `first` to before `end` of y [count, outputs]: the weight times `count` rows of x,
    // which are those at `rows`.
    void (*multiply)(const avl_coded *weight, const avl_coded_rows *x, const int64_t *rows,
                     int64_t count, int64_t first, int64_t end, float *y);
} avl_coded_kernels;

// NULL where the compiler did not know a level.
extern const avl_coded_kernels *const avl_coded_avx2, *const avl_coded_avx_vnni,
    *const avl_coded_avx512, *const avl_coded_neon, *const avl_coded_dotprod;

#endif
