// Linear layers whose weights are read as a checkpoint stores them, in 16 bits or float32: what the
// kernel of Linear computes, in float32. Weights of 8 bits, whole numbers, are those of screen.h.
#ifndef AVL_LINEAR_H
#define AVL_LINEAR_H

#include <stdint.h>

// Of a weight's inputs there is a multiple of these.
#define AVL_LINEAR_INPUTS 16

typedef enum avl_element { AVL_HALF, AVL_BFLOAT, AVL_SINGLE, AVL_BYTE } avl_element;

// Bytes of one.
static inline int64_t avl_size_of(avl_element element)
{
    return element == AVL_SINGLE ? 4 : element == AVL_BYTE ? 1 : 2;
}

typedef struct avl_stored {
    int64_t inputs, outputs;
    avl_element element;
    const void *data; // [outputs, inputs]
} avl_stored;

// Fills columns `first` to before `end` of y [rows, outputs]: x [rows, inputs] times the weight's rows.
typedef void avl_multiply_stored(const avl_stored *weight, const float *x, int64_t rows,
                                 int64_t first, int64_t end, float *y);

// One for each level of instructions that linear.c is compiled for; the first needs AVX2, FMA and
// F16C, the last is for Arm.
extern avl_multiply_stored avl_linear_avx2, avl_linear_avx512, avl_linear_neon;

#endif
