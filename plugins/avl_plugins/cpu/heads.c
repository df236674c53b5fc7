// Plain C, of which compilers make vectors.
#include "heads.h"

#include <math.h>
#include <string.h>

#define HELPER static inline __attribute__((always_inline))

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_heads_base
#endif

HELPER void norm(const float *restrict from, const float *restrict weight, float epsilon,
                 int64_t size, float *restrict to)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < size; i++)
        sum += from[i] * from[i];
    const float factor = 1.0f / sqrtf(sum / (float)size + epsilon);
    for (int64_t i = 0; i < size; i++)
        to[i] = from[i] * factor * weight[i];
}

// a b + c, rounded once where the level has an instruction for it.
HELPER float fused(float a, float b, float c)
{
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// One pair, as ONNX Runtime's RotaryEmbedding rounds it.
HELPER void turn(float *a, float *b, float cos, float sin)
{
    const float low = *a, high = *b;
    *a = fused(low, cos, -(high * sin));
    *b = fused(low, sin, high * cos);
}

// Pairs that lie half of what is turned apart.
HELPER void turn_halves(float *restrict low, float *restrict high, const float *restrict cos,
                        const float *restrict sin, int64_t pairs)
{
    for (int64_t i = 0; i < pairs; i++)
        turn(&low[i], &high[i], cos[i], sin[i]);
}

HELPER void turn_neighbours(float *restrict head, const float *restrict cos,
                            const float *restrict sin, int64_t pairs)
{
    for (int64_t i = 0; i < pairs; i++)
        turn(&head[2 * i], &head[2 * i + 1], cos[i], sin[i]);
}

HELPER void split_row(const avl_heads *all, const avl_heads_of *of, int64_t row)
{
    const int64_t size = all->head_dim, pairs = all->turned;
    const int64_t b = row / all->rows, s = row % all->rows;
    const float *cos = all->cos + row * pairs, *sin = all->sin + row * pairs;
    for (int64_t h = 0; h < of->heads; h++) {
        const float *from = of->rows + (row * of->heads + h) * size;
        float *to = of->to + ((b * of->heads + h) * all->rows + s) * size;
        if (of->norm)
            norm(from, of->norm, all->epsilon, size, to);
        else
            memcpy(to, from, (size_t)size * sizeof *to);
        if (of->is_turned && all->is_interleaved)
            turn_neighbours(to, cos, sin, pairs);
        else if (of->is_turned)
            turn_halves(to, to + pairs, cos, sin, pairs);
    }
}

void AVL_LEVEL(const avl_heads *all, int64_t first, int64_t end)
{
    for (int64_t row = first; row < end; row++)
        for (int i = 0; i < AVL_SPLIT; i++)
            split_row(all, &all->of[i], row);
}
