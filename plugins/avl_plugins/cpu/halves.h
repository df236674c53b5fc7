// Numbers of 16 bits (IEEE's binary16) as float32, one at a time.
#ifndef AVL_HALVES_H
#define AVL_HALVES_H

#include <stdint.h>
#include <string.h>

#ifndef HELPER
#define HELPER static inline __attribute__((always_inline))
#endif

#define AVL_MOST_HALF 65504.0f

// Without the processor's own instructions, which the compiler makes no vectors of.
HELPER float of_half(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float size;
    memcpy(&size, &bits, sizeof size);
    size *= 0x1p112f; // the difference of the exponents' biases; exact, also of the smallest
    memcpy(&bits, &size, sizeof bits);
    bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0; // infinite, or no number
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&size, &bits, sizeof size);
    return size;
}

// The nearest, of equals the even one; what is too large as the largest.
HELPER uint16_t to_half(float number)
{
    uint32_t bits, sum;
    memcpy(&bits, &number, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float size = __builtin_fabsf(number);
    size = size > AVL_MOST_HALF ? AVL_MOST_HALF : size;
    // The last bit of 0.5 is worth as much as that of a half too small to be normal.
    const float shifted = size + 0.5f;
    memcpy(&sum, &shifted, sizeof sum);
    memcpy(&bits, &size, sizeof bits);
    const uint32_t small = sum - 0x3f000000u;
    const uint32_t normal = (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
    const uint32_t made = size < 0x1p-14f ? small : size == size ? normal : 0x7e00;
    return (uint16_t)(made | sign);
}

#endif
