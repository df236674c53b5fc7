// Products of a matrix with itself, of which half are computed. Panels lie in the order in which they
// are read, on both sides of a product; a tile of one and of another is summed in registers, and
// what two panels give is written twice, once turned.
#include "likeness.h"

#include "exponent.h"
#include "row_lanes.h"

#include <math.h>

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_likeness_base
#endif

// A tile has TALL tokens of one panel and BROAD registers of another.
#if defined(__AVX512F__)
enum { TALL = 8, BROAD = 3 };
#elif defined(__AVX2__)
enum { TALL = 6, BROAD = 2 };
#elif defined(__aarch64__)
enum { TALL = 8, BROAD = 3 };
#else
enum { TALL = 4, BROAD = 2 };
#endif
_Static_assert(AVL_PANEL % TALL == 0 && AVL_PANEL % (BROAD * LANES) == 0, "panels are whole tiles");

enum {
    PIECE = 16, // features that are put in place at once
    DEEP = 128, // and that are summed at once: the fewer, the less is rounded away
    SUMS = 4,   // registers of a gain's sum
    SPAN = 512, // numbers of one in float32
};

HELPER int64_t tokens_of(const avl_likeness *of, int64_t panel)
{
    return least(AVL_PANEL, of->tokens - panel * AVL_PANEL);
}

// 1 for a token of zeros, which stays as it is.
HELPER double length_of(const float *features, int64_t width)
{
    double sums[PIECE] = {0};
    int64_t i = 0;
    for (; i + PIECE <= width; i += PIECE)
        for (int64_t x = 0; x < PIECE; x++)
            sums[x] += (double)features[i + x] * features[i + x];
    for (; i < width; i++)
        sums[0] += (double)features[i] * features[i];
    for (int64_t x = 1; x < PIECE; x++)
        sums[0] += sums[x];
    return sums[0] > 0 ? sqrt(sums[0]) : 1;
}

static void unit(const avl_likeness *of, int64_t panel)
{
    const int64_t count = tokens_of(of, panel), width = of->width;
    const float *from = of->features + panel * AVL_PANEL * width;
    float *to = of->panels + panel * AVL_PANEL * width;
    double lengths[AVL_PANEL];
    for (int64_t token = 0; token < count; token++)
        lengths[token] = length_of(from + token * width, width);
    if (count < AVL_PANEL)
        memset(to, 0, (size_t)(width * AVL_PANEL) * sizeof *to);
    for (int64_t begin = 0; begin < width; begin += PIECE) {
        const int64_t end = least(width, begin + PIECE);
        for (int64_t token = 0; token < count; token++)
            for (int64_t i = begin; i < end; i++)
                to[i * AVL_PANEL + token] = (float)(from[token * width + i] / lengths[token]);
    }
}

// Adds what so many features give. Sums are taken one by one: so those of equal tokens are equal.
HELPER void multiply(const float *a, const float *b, int64_t width, float to[][AVL_PANEL])
{
    lanes sum[TALL][BROAD] = {0};
    for (int64_t i = 0; i < width; i++) {
        lanes own[BROAD];
        _Pragma("GCC unroll 3") for (int x = 0; x < BROAD; x++)
            own[x] = *(const lanes *)(b + i * AVL_PANEL + x * LANES);
        _Pragma("GCC unroll 8") for (int r = 0; r < TALL; r++)
            _Pragma("GCC unroll 3") for (int x = 0; x < BROAD; x++)
                sum[r][x] += a[i * AVL_PANEL + r] * own[x];
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < TALL; r++)
        _Pragma("GCC unroll 3") for (int x = 0; x < BROAD; x++)
            *(lanes *)(to[r] + x * LANES) += sum[r][x];
}

static void write(const avl_likeness *of, int64_t panel, int64_t other,
                  const float found[AVL_PANEL][AVL_PANEL])
{
    const int64_t rows = tokens_of(of, panel), columns = tokens_of(of, other);
    float *to = of->out + panel * AVL_PANEL * of->stride + other * AVL_PANEL;
    float *turned = of->out + other * AVL_PANEL * of->stride + panel * AVL_PANEL;
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + r * of->stride, found[r], (size_t)columns * sizeof(float));
    for (int64_t c = 0; panel != other && c < columns; c++)
        for (int64_t r = 0; r < rows; r++)
            turned[c * of->stride + r] = found[r][c];
}

static void compare(const avl_likeness *of, int64_t panel)
{
    float found[AVL_PANEL][AVL_PANEL] __attribute__((aligned(64)));
    const int64_t size = of->width * AVL_PANEL;
    const float inverse = of->temperature > 0 ? 1 / of->temperature : 0;
    for (int64_t other = 0; other <= panel; other++) {
        const float *own = of->panels + panel * size, *others = of->panels + other * size;
        memset(found, 0, sizeof found);
        for (int64_t i = 0; i < of->width; i += DEEP)
            for (int64_t r = 0; r < AVL_PANEL; r += TALL)
                for (int64_t c = 0; c < AVL_PANEL; c += BROAD * LANES)
                    multiply(own + i * AVL_PANEL + r, others + i * AVL_PANEL + c,
                             least(DEEP, of->width - i), (float(*)[AVL_PANEL])&found[r][c]);
        if (of->temperature > 0)
            for (int64_t r = 0; r < AVL_PANEL; r++)
                for (int64_t c = 0; c < AVL_PANEL; c++)
                    found[r][c] = avl_exp((found[r][c] - 1) * inverse);
        write(of, panel, other, found);
    }
}

static double gain(const float *row, const float *best, int64_t count)
{
    const lanes zero = {0};
    double total = 0;
    int64_t i = 0;
    while (i + SUMS * LANES <= count) {
        const int64_t end = least(count, i + SPAN);
        lanes sums[SUMS] = {0};
        for (; i + SUMS * LANES <= end; i += SUMS * LANES)
            _Pragma("GCC unroll 4") for (int x = 0; x < SUMS; x++) {
                const int64_t at = i + x * LANES;
                sums[x] += greater(*(const lanes *)(row + at) - *(const lanes *)(best + at), zero);
            }
        const lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int x = 0; x < LANES; x++)
            total += sum[x];
    }
    for (; i < count; i++)
        total += row[i] > best[i] ? row[i] - best[i] : 0;
    return total;
}

static void scale(float *restrict row, const float *restrict by, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        row[i] *= by[i];
}

const avl_likeness_kernels AVL_LEVEL = {unit, compare, gain, scale};
