// A weight w is near s * c, for a scale s and whole numbers c. By Cauchy and Schwarz |w . x - s c . x|
// is at most |w - s c| |x|; to this comes what sums of float32 may be off (Higham, Accuracy and
// Stability of Numerical Algorithms, 3.1: n units of the sum of magnitudes, itself at most |w| |x|).
// NaN and infinity compare as what may be the largest. For x of a usual length (AVL_LEAST_LENGTH) no
// product that counts is so small that it loses digits, and none of a code overflows.
#include "screen.h"

#include "widen.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define BLOCK 64         // outputs looked at together
#define MANY (BLOCK / 4) // of them that may be the largest: then all are computed
#define TILE 256         // inputs at a time
#define MOST_CODE 127
#define LEAST_WEIGHT 0x1p-60f // rows of smaller ones, whose squares might vanish, are never passed over

// Of sums of so many terms, with a few operations around them, twice: of codes and of weights.
static float rounding(int64_t inputs) { return (float)(inputs + 16) * FLT_EPSILON; }

HELPER void widen_tile(const avl_stored *w, avl_element element, int64_t output, int64_t k, float *to)
{
    const char *row = row_of(w, element, output);
    for (int64_t j = 0; j < least(TILE, w->inputs - k); j += LANES)
        *(lanes *)(to + j) = widen(row, k + j, element);
}

HELPER float largest_of(const avl_stored *w, avl_element element, int64_t output)
{
    float tile[TILE], found;
    uint32_t bits[TILE], largest = 0; // of magnitudes, in whose order those of NaN come last
    for (int64_t k = 0; k < w->inputs; k += TILE) {
        const int64_t count = least(TILE, w->inputs - k);
        widen_tile(w, element, output, k, tile);
        memcpy(bits, tile, (size_t)count * sizeof *bits);
        for (int64_t j = 0; j < count; j++) {
            uint32_t magnitude = bits[j] & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
    }
    memcpy(&found, &largest, sizeof found);
    return found;
}

HELPER void make_row(const avl_stored *w, avl_element element, const avl_screen *screen,
                     int64_t output)
{
    int8_t *codes = (int8_t *)screen->codes.data + output * w->inputs;
    const float largest = largest_of(w, element, output), scale = largest / MOST_CODE;
    screen->scales[output] = screen->distances[output] = 0;
    if (!(largest >= LEAST_WEIGHT && largest <= FLT_MAX)) {
        memset(codes, 0, (size_t)w->inputs);
        screen->distances[output] = largest == 0 ? 0 : INFINITY;
        return;
    }
    const float inverse = 1 / scale;
    float tile[TILE], off = 0, length = 0; // squares, in units of the scale
    for (int64_t k = 0; k < w->inputs; k += TILE) {
        widen_tile(w, element, output, k, tile);
        for (int64_t j = 0; j < least(TILE, w->inputs - k); j++) {
            float exact = tile[j] * inverse, code = rintf(exact);
            codes[k + j] = (int8_t)(int32_t)code;
            off += (exact - code) * (exact - code);
            length += exact * exact;
        }
    }
    const float one = 1 + rounding(w->inputs);
    screen->scales[output] = scale;
    screen->distances[output] =
        scale * one * (sqrtf(off) * one + rounding(w->inputs) * (sqrtf(length) * one + sqrtf(off)));
}

static void make(const avl_stored *weight, const avl_screen *screen, int64_t first, int64_t end)
{
    for (int64_t output = first; output < end; output++)
        if (weight->element == AVL_HALF)
            make_row(weight, AVL_HALF, screen, output);
        else if (weight->element == AVL_BFLOAT)
            make_row(weight, AVL_BFLOAT, screen, output);
        else
            make_row(weight, AVL_SINGLE, screen, output);
}

#if defined(__aarch64__)
#define MULTIPLY avl_linear_neon
#elif defined(__AVX512F__)
#define MULTIPLY avl_linear_avx512
#else
#define MULTIPLY avl_linear_avx2
#endif

static void estimate(const avl_screen *screen, const avl_screened *of, int64_t first, int64_t end,
                     float *floors)
{
    MULTIPLY(&screen->codes, of->x, of->rows, first, end, of->y);
    for (int64_t r = 0; r < of->rows; r++) {
        float *y = of->y + r * screen->codes.outputs, floor = -INFINITY;
        for (int64_t i = first; i < end; i++) {
            y[i] *= screen->scales[i];
            float low = y[i] - screen->distances[i] * of->lengths[r];
            floor = low > floor ? low : floor;
        }
        floors[r] = floor;
    }
}

// Which outputs of a block may be the largest of any row, and how many.
HELPER int32_t find(const avl_screen *screen, const avl_screened *of, int64_t first, int64_t count,
                    const float *floors, int32_t *may)
{
    int32_t found = 0;
    memset(may, 0, BLOCK * sizeof *may);
    for (int64_t r = 0; r < of->rows; r++) {
        const float *y = of->y + r * screen->codes.outputs + first;
        const float *distances = screen->distances + first, length = of->lengths[r];
        const float floor = floors[r];
        for (int64_t i = 0; i < count; i++)
            may[i] |= !(y[i] + distances[i] * length < floor);
    }
    for (int64_t i = 0; i < count; i++)
        found += may[i];
    return found;
}

static void settle(const avl_stored *weight, const avl_screen *screen, const avl_screened *of,
                   int64_t first, int64_t end, const float *floors)
{
    int32_t may[BLOCK];
    for (int64_t block = first; block < end; block += BLOCK) {
        const int64_t count = least(BLOCK, end - block);
        const int32_t found = find(screen, of, block, count, floors, may);
        if (found > MANY) {
            MULTIPLY(weight, of->x, of->rows, block, block + count, of->y);
            continue;
        }
        for (int64_t r = 0; r < of->rows; r++)
            for (int64_t i = block; i < block + count; i++)
                of->y[r * weight->outputs + i] = -INFINITY;
        for (int64_t i = 0; found && i < count; i++)
            if (may[i])
                MULTIPLY(weight, of->x, of->rows, block + i, block + i + 1, of->y);
    }
}

const avl_screening AVL_LEVEL = {MULTIPLY, make, estimate, settle};
