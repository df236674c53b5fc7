// Plain C, of which compilers make vectors.
#include "norm.h"

#include <math.h>

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_norm_base
#endif

static void add_norm(const float *restrict a, const float *restrict b, const float *restrict weight,
                     float epsilon, int64_t width, float *restrict sum, float *restrict normed)
{
    float squares = 0.0f;
    for (int64_t i = 0; i < width; i++) {
        const float one = a[i] + b[i];
        sum[i] = one;
        squares += one * one;
    }
    const float factor = 1.0f / sqrtf(squares / (float)width + epsilon);
    for (int64_t i = 0; i < width; i++)
        normed[i] = sum[i] * factor * weight[i];
}

void AVL_LEVEL(const avl_sums *all, int64_t first, int64_t end)
{
    for (int64_t row = first; row < end; row++) {
        const int64_t at = row * all->width;
        add_norm(all->a + at, all->b + at, all->weight, all->epsilon, all->width, all->sum + at,
                 all->normed + at);
    }
}
