// Products with one weight of a stack, as experts have them: of any sizes, and in either order.
#ifndef AVL_STACKED_H
#define AVL_STACKED_H

#include "linear.h"

// What stacked.c is compiled to for one level of instructions.
typedef struct avl_stacked_kernels {
    // Both fill columns `first` to before `end` of y [rows, outputs]: x [rows, inputs] times a weight
    // that lies [inputs, outputs], or [outputs, inputs], which avl_multiply_stored is faster with
    // where it takes its inputs.
    avl_multiply_stored *turned, *straight;
    // Columns `first` to before `end` of inner [rows, size]: silu(gate) * up of both [rows, 2, size].
    void (*gate)(const float *both, int64_t rows, int64_t size, int64_t first, int64_t end,
                 float *inner);
} avl_stacked_kernels;

// The first needs AVX2, FMA and F16C, the last is for Arm.
extern const avl_stacked_kernels avl_stacked_avx2, avl_stacked_avx512, avl_stacked_neon;

#endif
