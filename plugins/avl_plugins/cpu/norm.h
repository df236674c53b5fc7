// Rows that are added and normed (schema/norms.py).
#ifndef AVL_NORM_H
#define AVL_NORM_H

#include <stdint.h>

typedef struct avl_sums {
    int64_t width; // numbers of a row
    float epsilon;
    const float *a, *b;   // [rows, width]
    const float *weight;  // [width]
    float *sum, *normed;  // [rows, width]
} avl_sums;

// One for each level of instructions that norm.c is compiled for: rows [first, end).
typedef void avl_add_norm(const avl_sums *all, int64_t first, int64_t end);

extern avl_add_norm avl_norm_base, avl_norm_avx2, avl_norm_avx512;

#endif
