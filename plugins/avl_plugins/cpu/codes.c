#include "codes.h"

#include "halves.h"

#include <math.h>
#include <string.h>

// The largest power of two that divides a head size.
HELPER int64_t block_of(int64_t d) { return d & -d; }

// One step of the fast transform: sums and differences of numbers that lie `half` apart.
HELPER void add_and_subtract(float *restrict x, int64_t d, int64_t half)
{
    for (int64_t first = 0; first < d; first += 2 * half)
        for (int64_t i = first; i < first + half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
        }
}

HELPER void rotate_rows(const float *rows, int64_t count, int64_t d, float *to)
{
    const int64_t block = block_of(d);
    const float length = 1.0f / sqrtf((float)block);
    for (int64_t j = 0; j < count; j++) {
        float *row = to + j * d;
        memcpy(row, rows + j * d, (size_t)d * sizeof(float));
        for (int64_t half = 1; half < block; half *= 2)
            switch (half) { // the compiler makes vectors of loops whose length it knows
            case 1: add_and_subtract(row, d, 1); break;
            case 2: add_and_subtract(row, d, 2); break;
            case 4: add_and_subtract(row, d, 4); break;
            case 8: add_and_subtract(row, d, 8); break;
            default: add_and_subtract(row, d, half);
            }
        for (int64_t i = 0; i < d; i++)
            row[i] *= length;
    }
}

HELPER void round_rows(const float *rows, int64_t count, int64_t d, int8_t *codes, float *scales)
{
    for (int64_t j = 0; j < count; j++) {
        const float *row = rows + j * d;
        float largest = 0.0f;
        for (int64_t i = 0; i < d; i++) {
            float magnitude = fabsf(row[i]);
            largest = magnitude > largest ? magnitude : largest;
        }
        const float scale = largest / AVL_MOST_CODE, unit = scale > 0.0f ? scale : 1.0f;
        scales[j] = scale;
        for (int64_t i = 0; i < d; i++)
            codes[j * d + i] = (int8_t)(int32_t)rintf(row[i] / unit);
    }
}

// Loops over the usual sizes of a head are unrolled.
#define FOR_SIZE(CALL)                                                                             \
    switch (d) {                                                                                   \
    case 64: { const int64_t size = 64; CALL; break; }                                             \
    case 128: { const int64_t size = 128; CALL; break; }                                           \
    default: { const int64_t size = d; CALL; }                                                     \
    }

static void rotate(const float *rows, int64_t count, int64_t d, float *to)
{
    FOR_SIZE(rotate_rows(rows, count, size, to))
}

static void round_to(const float *rows, int64_t count, int64_t d, int8_t *codes, float *scales)
{
    FOR_SIZE(round_rows(rows, count, size, codes, scales))
}

static void halve(const float *rows, int64_t count, int64_t d, uint16_t *halves)
{
    for (int64_t i = 0; i < count * d; i++)
        halves[i] = to_half(rows[i]);
}

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_codes_base
#endif
const avl_code_kernels AVL_LEVEL = {rotate, round_to, halve};
