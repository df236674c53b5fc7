// Plain C, of which compilers make vectors: a row's channels at a time.
#include "convolve.h"

#include "ahead.h"
#include "exponent.h"

#include <string.h>

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_convolve_base
#endif

enum { TAPS = 4, PIECE = 64 }; // the most inputs that weights are put in order for; channels of a sum

// A row before the first is the state's.
HELPER const float *row_at(const avl_convolution *of, int64_t b, int64_t row)
{
    const int64_t before = of->kernel - 1;
    return row < 0 ? of->state + (b * before + before + row) * of->channels
                   : of->x + (b * of->rows + row) * of->channels;
}

HELPER void activate(float *restrict y, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = avl_gated(y[i], y[i]);
}

// Channels [first, first + count) of a row, by weights [kernel, AVL_CHANNELS].
HELPER void sum_row(const float *const rows[], const float taps[][AVL_CHANNELS], int64_t first,
                    int64_t count, int64_t kernel, float *y)
{
    int64_t i = 0;
    for (; i + PIECE <= count; i += PIECE) {
        float sum[PIECE] = {0};
        _Pragma("GCC unroll 4") for (int64_t j = 0; j < kernel; j++)
            for (int64_t x = 0; x < PIECE; x++)
                sum[x] += taps[j][i + x] * rows[j][first + i + x];
        memcpy(y + first + i, sum, sizeof sum);
    }
    for (; i < count; i++) {
        float sum = 0.0f;
        for (int64_t j = 0; j < kernel; j++)
            sum += taps[j][i] * rows[j][first + i];
        y[first + i] = sum;
    }
}

HELPER void by_taps(const avl_convolution *of, int64_t b, int64_t first, int64_t count,
                    int64_t kernel)
{
    float taps[TAPS][AVL_CHANNELS];
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < kernel; j++)
            taps[j][i] = of->weight[(first + i) * kernel + j];
    for (int64_t row = 0; row < of->rows; row++) {
        const float *rows[TAPS];
        for (int64_t j = 0; j < kernel; j++)
            rows[j] = row_at(of, b, row + j - (kernel - 1));
        float *y = of->y + (b * of->rows + row) * of->channels;
        sum_row(rows, taps, first, count, kernel, y);
        if (of->has_silu)
            activate(y + first, count);
    }
}

// Of kernels of any size.
static void by_channels(const avl_convolution *of, int64_t b, int64_t first, int64_t count)
{
    for (int64_t row = 0; row < of->rows; row++) {
        float *y = of->y + (b * of->rows + row) * of->channels + first;
        memset(y, 0, (size_t)count * sizeof *y);
        for (int64_t j = 0; j < of->kernel; j++) {
            const float *from = row_at(of, b, row + j - (of->kernel - 1)) + first;
            for (int64_t i = 0; i < count; i++)
                y[i] += of->weight[(first + i) * of->kernel + j] * from[i];
        }
        if (of->has_silu)
            activate(y, count);
    }
}

void AVL_LEVEL(const avl_convolution *of, int64_t task)
{
    const int64_t blocks = (of->channels + AVL_CHANNELS - 1) / AVL_CHANNELS, b = task / blocks;
    const int64_t first = task % blocks * AVL_CHANNELS, before = of->kernel - 1;
    const int64_t count = least(AVL_CHANNELS, of->channels - first);
    switch (of->kernel) {
    case 3: by_taps(of, b, first, count, 3); break;
    case 4: by_taps(of, b, first, count, 4); break;
    default: by_channels(of, b, first, count);
    }
    for (int64_t j = 0; j < before; j++)
        memcpy(of->state_new + (b * before + j) * of->channels + first,
               row_at(of, b, of->rows + j - before) + first, (size_t)count * sizeof(float));
}
