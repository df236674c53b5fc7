// Plain C, of which compilers make vectors. Functions are within a few units of float32's last place
// of their values, and NaN stays NaN.
#include "epilogue.h"

#include "exponent.h"

#define HELPER static inline __attribute__((always_inline))

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_epilogues_base
#endif

HELPER float identity(float x) { return x; }

HELPER float silu(float x) { return avl_gated(x, x); }

HELPER float quick_gelu(float x) { return avl_gated(x, 1.702f * x); }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x ** 3))), as tanh is 2 logistic(2 z) - 1.
HELPER float tanh_gelu(float x)
{
    return avl_gated(x, 1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
}

// x times the normal distribution's function, whose tail is erfc(|x| / sqrt(2)) / 2: a polynomial in
// t times e ** -x ** 2 / 2, relative error 1.2e-7 (Press et al., Numerical Recipes, erfcc).
HELPER float gelu(float x)
{
    const float z = avl_magnitude(x) * 0.70710678118654752f;
    const float t = 1.0f / (1.0f + 0.5f * z);
    float p = 0.17087277f;
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    const float tail = 0.5f * t * avl_exp(-z * z + (p * t - 1.26551223f));
    return x < 0.0f ? x * tail : x - x * tail;
}

#define FOR_ACTIVATION(ACTIVATION, FUNCTION)                                                       \
    switch (ACTIVATION) {                                                                          \
    case AVL_IDENTITY: FUNCTION(identity); break;                                                  \
    case AVL_GELU: FUNCTION(gelu); break;                                                          \
    case AVL_TANH_GELU: FUNCTION(tanh_gelu); break;                                                \
    case AVL_QUICK_GELU: FUNCTION(quick_gelu); break;                                              \
    case AVL_SILU: FUNCTION(silu); break;                                                          \
    }

#define FINISH(FUNCTION)                                                                           \
    for (int64_t row = 0; row < rows; row++) {                                                     \
        float *restrict to = y + row * outputs;                                                    \
        for (int64_t i = first; i < end; i++)                                                      \
            to[i] = FUNCTION(to[i] + bias[i]);                                                     \
    }

static void finish(const avl_epilogue *epilogue, float *y, int64_t rows, int64_t outputs,
                   int64_t first, int64_t end)
{
    const float *restrict bias = epilogue->bias;
    FOR_ACTIVATION(epilogue->activation, FINISH)
}

#define GATE(FUNCTION)                                                                             \
    for (int64_t row = 0; row < rows; row++) {                                                     \
        float *restrict to = y + row * outputs + first;                                            \
        const float *restrict from = by + row * (end - first);                                     \
        for (int64_t i = 0; i < end - first; i++)                                                  \
            to[i] = FUNCTION(to[i]) * from[i];                                                     \
    }

static void gate(avl_activation activation, float *y, int64_t rows, int64_t outputs, int64_t first,
                 int64_t end, const float *by)
{
    FOR_ACTIVATION(activation, GATE)
}

const avl_epilogues AVL_LEVEL = {finish, gate};
