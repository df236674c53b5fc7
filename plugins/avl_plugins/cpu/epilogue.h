// What follows the products of a linear layer: a bias is added, and a function is taken of the sums.
#ifndef AVL_EPILOGUE_H
#define AVL_EPILOGUE_H

#include <stdint.h>

typedef enum avl_activation { AVL_IDENTITY, AVL_GELU, AVL_TANH_GELU, AVL_QUICK_GELU } avl_activation;

typedef struct avl_epilogue {
    const float *bias; // [outputs]; NULL: there is none, and nothing follows
    avl_activation activation;
} avl_epilogue;

// Changes columns `first` to before `end` of y [rows, outputs].
typedef void avl_finish(const avl_epilogue *epilogue, float *y, int64_t rows, int64_t outputs,
                        int64_t first, int64_t end);

// One for each level of instructions that epilogue.c is compiled for.
extern avl_finish avl_finish_base, avl_finish_avx2, avl_finish_avx512;

#endif
