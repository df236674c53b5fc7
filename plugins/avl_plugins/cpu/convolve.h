// A causal convolution of each channel by itself (schema/states.py).
#ifndef AVL_CONVOLVE_H
#define AVL_CONVOLVE_H

#include <stdint.h>

enum { AVL_CHANNELS = 256 }; // of a task

// x, y [B, S, C]; state, state_new [B, K - 1, C], which do not overlap; weight [C, K].
typedef struct avl_convolution {
    int64_t batch, rows, channels, kernel;
    int has_silu; // x / (1 + e ** -x) of the sums
    const float *x, *state, *weight;
    float *y, *state_new;
} avl_convolution;

// One for each level of instructions that convolve.c is compiled for. A task is AVL_CHANNELS
// channels of a sequence, of B * ceil(C / AVL_CHANNELS), in any order and in any threads at once.
typedef void avl_convolve(const avl_convolution *of, int64_t task);

extern avl_convolve avl_convolve_base, avl_convolve_avx2, avl_convolve_avx512;

#endif
