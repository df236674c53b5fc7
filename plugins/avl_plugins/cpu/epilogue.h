// What follows the products of a linear layer: a bias is added and a function is taken of the sums; or
// a function of the first of two products gates the second.
#ifndef AVL_EPILOGUE_H
#define AVL_EPILOGUE_H

#include <stdint.h>

typedef enum avl_activation {
    AVL_IDENTITY,
    AVL_GELU,
    AVL_TANH_GELU,
    AVL_QUICK_GELU,
    AVL_SILU, // x times the logistic function of x
} avl_activation;

typedef struct avl_epilogue {
    const float *bias; // [outputs]; NULL: there is none, and nothing follows
    avl_activation activation;
} avl_epilogue;

typedef struct avl_epilogues {
    // Changes columns `first` to before `end` of y [rows, outputs].
    void (*finish)(const avl_epilogue *epilogue, float *y, int64_t rows, int64_t outputs, int64_t first,
                   int64_t end);
    // The same columns become their function times those of `by` [rows, end - first].
    void (*gate)(avl_activation activation, float *y, int64_t rows, int64_t outputs, int64_t first,
                 int64_t end, const float *by);
} avl_epilogues;

// One for each level of instructions that epilogue.c is compiled for.
extern const avl_epilogues avl_epilogues_base, avl_epilogues_avx2, avl_epilogues_avx512;

#endif
