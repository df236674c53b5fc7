#ifndef AVL_EXPONENT_H
#define AVL_EXPONENT_H

#include <stdint.h>

#define AVL_LOG2_E 1.44269504088896341f

// 2 ** x for x <= 0, -inf included, to float32's precision, by a polynomial of least relative error
// for the rest of x. What is below the least normal number is 0.
static inline __attribute__((always_inline)) float avl_exp2(float x)
{
    float bounded = x < -126.0f ? -126.0f : x;
    float n = __builtin_floorf(bounded + 0.5f);
    float r = bounded - n;
    float p = 1.5345811703e-4f;
    p = p * r + 1.3399931216e-3f;
    p = p * r + 9.6184889582e-3f;
    p = p * r + 5.5503287770e-2f;
    p = p * r + 2.4022646891e-1f;
    p = p * r + 6.9314720574e-1f;
    p = p * r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)n + 127) << 23};
    return x < -126.0f ? 0.0f : p * power.value;
}

// e ** x for x <= 0, to float32's precision: 2 ** n times a polynomial of the rest (Cephes' expf).
// Compilers make vectors of it, which not every C library's expf can be.
static inline __attribute__((always_inline)) float avl_exp(float x)
{
    float bounded = x < -87.0f ? -87.0f : x;
    float n = __builtin_floorf(bounded * AVL_LOG2_E + 0.5f);
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)n + 127) << 23};
    return x < -87.0f ? 0.0f : p * power.value;
}

static inline __attribute__((always_inline)) float avl_magnitude(float x) { return x < 0.0f ? -x : x; }

// x / (1 + e ** -z), which is x times the logistic function of z.
static inline __attribute__((always_inline)) float avl_gated(float x, float z)
{
    const float e = avl_exp(-avl_magnitude(z));
    return (z < 0.0f ? x * e : x) / (1.0f + e);
}

#endif
