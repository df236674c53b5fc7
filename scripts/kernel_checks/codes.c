// Rotations and codes of rows beside float64.
#include "check.h"

#include "halves.h"
#include "levels.h"

#include <float.h>
#include <math.h>

// Row i of Hadamard's matrix of `block`, at j.
static double hadamard(int64_t i, int64_t j, int64_t block)
{
    double length = sqrt((double)block);
    return __builtin_popcountll((unsigned long long)(i & j)) % 2 ? -1 / length : 1 / length;
}

static void check_rotation(const float *rows, int64_t count, int64_t d)
{
    const int64_t block = d & -d; // the largest power of two that divides it
    float *found = results(count * d);
    avl_best_codes()->rotate(rows, count, d, found);
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < d; i++) {
            const float *from = rows + j * d + i / block * block;
            double wanted = 0, size = 0;
            for (int64_t k = 0; k < block; k++) {
                wanted += hadamard(i % block, k, block) * from[k];
                size += fabs(from[k]);
            }
            expect("rotation", found[j * d + i], wanted, 8 * FLT_EPSILON * size);
        }
}

static void check_rounding(const float *rows, int64_t count, int64_t d)
{
    int8_t *codes = (int8_t *)results(count * d / 4 + 1);
    float *scales = results(count);
    avl_best_codes()->round(rows, count, d, codes, scales);
    for (int64_t j = 0; j < count; j++) {
        double largest = 0;
        for (int64_t i = 0; i < d; i++)
            largest = fmax(largest, fabs(rows[j * d + i]));
        expect("scale", scales[j], largest / AVL_MOST_CODE, largest * FLT_EPSILON);
        for (int64_t i = 0; i < d; i++)
            expect("code", (double)codes[j * d + i] * scales[j], rows[j * d + i],
                   0.501 * largest / AVL_MOST_CODE);
    }
}

static void check_halving(const float *rows, int64_t count, int64_t d)
{
    uint16_t *halves = (uint16_t *)results(count * d / 2 + 1);
    avl_best_codes()->halve(rows, count, d, halves);
    for (int64_t i = 0; i < count * d; i++)
        expect("half", of_half(halves[i]), rows[i], 0x1p-11 * fabsf(rows[i]) + 0x1p-25);
}

void check_codes(void)
{
    static const int64_t dims[] = {1, 5, 24, 64, 80, 128};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        const float *rows = numbers(7 * dims[i]);
        check_rotation(rows, 7, dims[i]);
        check_rounding(rows, 7, dims[i]);
        check_halving(rows, 7, dims[i]);
        forget();
    }
}
