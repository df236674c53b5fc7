// Scores of rows of 8, 16 (codes.h) or 32 bits, which are float32, and sums of values of the first
// two: what attention.c reads them with. How many bits is known where these functions are called, so
// that each is compiled for all.
#ifndef AVL_STEP_CODES_H
#define AVL_STEP_CODES_H

#include "halves.h"
#include "row_lanes.h"

HELPER lanes of_halves(const void *halves)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtph_ps(_mm256_loadu_si256(halves));
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtph_ps(_mm_loadu_si128(halves));
#elif defined(__aarch64__)
    return (lanes)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
#else
    const uint16_t *of = halves;
    return (lanes){of_half(of[0]), of_half(of[1]), of_half(of[2]), of_half(of[3])};
#endif
}

// Of rows that lie together, LANES numbers from the one at `at` on; that one; and a row's scale.
HELPER lanes lanes_at(const void *rows, int64_t at, int bits)
{
    const char *from = (const char *)rows + at * bits / 8;
    return bits == 32 ? *(const lanes *)from : bits == 16 ? of_halves(from) : of_bytes(from);
}
HELPER float number_at(const void *rows, int64_t at, int bits)
{
    return bits == 32   ? ((const float *)rows)[at]
           : bits == 16 ? of_half(((const uint16_t *)rows)[at])
                        : ((const int8_t *)rows)[at];
}
HELPER float scale_at(const float *scales, int64_t row, int bits)
{
    return bits == 8 ? scales[row] : 1.0f;
}
HELPER const void *rows_from(const void *rows, int64_t row, int64_t d, int bits)
{
    return (const char *)rows + row * d * bits / 8;
}
HELPER const float *scales_from(const float *scales, int64_t row, int bits)
{
    return bits == 8 ? scales + row : NULL;
}

// sum[g * rows + j] += q[g] . keys[j], of so many columns as fill registers, whose number is returned.
// One head reads row after row, as they come from memory; several share registers of keys. As they go,
// they fetch what lies so many bytes `ahead`; 0: nothing.
HELPER int64_t add_scores(lanes *sum, const float *q, int64_t d, const void *keys, int64_t ahead,
                          int heads, int rows, int bits)
{
    const int64_t end = d / LANES * LANES;
    if (heads == 1) {
        _Pragma("GCC unroll 16") for (int j = 0; j < rows; j++)
        {
            const char *row = rows_from(keys, j, d, bits);
            if (ahead)
                fetch(row + ahead, d * bits / 8);
            for (int64_t i = 0; i < end; i += LANES)
                sum[j] += *(const lanes *)(q + i) * lanes_at(row, i, bits);
        }
        return end;
    }
    for (int64_t i = 0; i < end; i += LANES) {
        lanes key[LANES];
        _Pragma("GCC unroll 16") for (int j = 0; j < rows; j++)
        {
            const int64_t at = j * d + i;
            if (ahead && at * bits / 8 % LINE == 0)
                __builtin_prefetch((const char *)keys + at * bits / 8 + ahead, 0, 2);
            key[j] = lanes_at(keys, at, bits);
        }
        _Pragma("GCC unroll 16") for (int g = 0; g < heads; g++)
        {
            const lanes query = *(const lanes *)(q + g * d + i);
            _Pragma("GCC unroll 16") for (int j = 0; j < rows; j++)
                sum[g * rows + j] += query * key[j];
        }
    }
    return end;
}

// scores[g, j] = scale * scales[j] * q[g] . keys[j], for so many heads and rows, LANES in all; those
// of the first `count` rows are kept.
HELPER void score_block(const float *q, int64_t d, const void *keys, const float *scales,
                        float scale, float *scores, int64_t stride, int64_t count, int64_t ahead,
                        int heads, int rows, int bits)
{
    lanes sum[LANES] = {0};
    const int64_t i = add_scores(sum, q, d, keys, ahead, heads, rows, bits);
    float sums[LANES] __attribute__((aligned(64))), factors[LANES] __attribute__((aligned(64)));
    for (int g = 0; g < heads; g++)
        for (int j = 0; j < rows; j++)
            factors[g * rows + j] = scale * scale_at(scales, j, bits);
    *(lanes *)sums = sums_of(sum);
    if (i < d)
        for (int g = 0; g < heads; g++)
            for (int j = 0; j < rows; j++)
                for (int64_t k = i; k < d; k++)
                    sums[g * rows + j] += q[g * d + k] * number_at(keys, j * d + k, bits);
    *(lanes *)sums *= *(const lanes *)factors;
    for (int g = 0; g < heads; g++)
        if (count >= rows)
            memcpy(scores + g * stride, sums + g * rows, (size_t)rows * sizeof *sums);
        else
            for (int64_t j = 0; j < count; j++)
                scores[g * stride + j] = sums[g * rows + j];
}

// The same for so many heads and LANES rows.
HELPER void score_lanes(const float *q, int64_t d, const void *keys, const float *scales,
                        float scale, float *scores, int64_t stride, int64_t count, int64_t ahead,
                        int heads, int bits)
{
    const int rows = LANES / heads;
    for (int j = 0; j < LANES; j += rows)
        score_block(q, d, rows_from(keys, j, d, bits), scales_from(scales, j, bits), scale,
                    scores + j, stride, count - j, ahead, heads, rows, bits);
}

// The same for a group of heads, of any number of rows. Of equal keys scores are equal, wherever they
// lie: the last rows are a block too, in memory where zeros follow.
HELPER void score_codes(int64_t group, float scale, int64_t d, const float *q, const void *keys,
                        const float *scales, int64_t rows, float *scores, int64_t stride, int bits)
{
    const int64_t size = d * bits / 8;
    float last[LANES * d * bits / 32], last_scales[LANES] = {0};
    for (int64_t j = 0; j < rows; j += LANES) {
        const void *from = rows_from(keys, j, d, bits);
        const float *by = scales_from(scales, j, bits);
        float *to = scores + j;
        const int64_t count = least(LANES, rows - j);
        if (count < LANES) {
            memcpy(last, from, (size_t)(count * size));
            memset((char *)last + count * size, 0, (size_t)((LANES - count) * size));
            for (int64_t k = 0; by && k < count; k++)
                last_scales[k] = by[k];
            from = last, by = last_scales;
        }
        // Farther than values: a row of keys is done sooner. The first heads ask for all.
        int64_t g = 0, ahead = count < LANES ? 0 : step_ahead(group + 1);
        for (; g + 4 <= group; g += 4, ahead = 0)
            score_lanes(q + g * d, d, from, by, scale, to + g * stride, stride, count, ahead, 4, bits);
        for (; g + 2 <= group; g += 2, ahead = 0)
            score_lanes(q + g * d, d, from, by, scale, to + g * stride, stride, count, ahead, 2, bits);
        for (; g < group; g++, ahead = 0)
            score_lanes(q + g * d, d, from, by, scale, to + g * stride, stride, count, ahead, 1, bits);
    }
}

// out[g] += the sum of weights[g, j] * scales[j] * values[j] over so many rows, for so many heads
// and lanes from column `i` on.
HELPER void add_lanes(const float *weights, int64_t stride, const float *scales,
                      const void *values, int64_t rows, int64_t d, float *out, int64_t i, int heads,
                      int wide, int bits)
{
    lanes sum[4][4];
    _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            sum[g][x] = *(const lanes *)(out + g * d + i + x * LANES);
    for (int64_t j = 0; j < rows; j++) {
        lanes value[4];
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            value[x] = lanes_at(values, j * d + i + x * LANES, bits);
        _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
        {
            const float weight = weights[g * stride + j] * scale_at(scales, j, bits);
            _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++) sum[g][x] += weight * value[x];
        }
    }
    _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            *(lanes *)(out + g * d + i + x * LANES) = sum[g][x];
}

HELPER void add_heads(const float *weights, int64_t stride, const float *scales,
                      const void *values, int64_t rows, int64_t d, float *out, int heads, int bits)
{
    int64_t i = 0;
    for (; i + WIDE * LANES <= d; i += WIDE * LANES)
        add_lanes(weights, stride, scales, values, rows, d, out, i, heads, WIDE, bits);
    for (; i + LANES <= d; i += LANES)
        add_lanes(weights, stride, scales, values, rows, d, out, i, heads, 1, bits);
    for (; i < d; i++)
        for (int g = 0; g < heads; g++)
            for (int64_t j = 0; j < rows; j++)
                out[g * d + i] += weights[g * stride + j] * scale_at(scales, j, bits) *
                                  number_at(values, j * d + i, bits);
}

// The same for a group of heads: a block of rows at a time, which stays in the first cache.
HELPER void add_codes(int64_t group, int64_t d, const float *weights, int64_t stride,
                      const void *values, const float *scales, int64_t rows, float *out, int bits)
{
    enum { BLOCK = 16 };
    for (int64_t j = 0; j < rows; j += BLOCK) {
        const int64_t count = least(BLOCK, rows - j);
        const char *from = rows_from(values, j, d, bits);
        const float *by = scales_from(scales, j, bits), *share = weights + j;
        fetch(from + step_ahead(group), count * d * bits / 8);
        int64_t g = 0;
        for (; g + 4 <= group; g += 4)
            add_heads(share + g * stride, stride, by, from, count, d, out + g * d, 4, bits);
        for (; g + 2 <= group; g += 2)
            add_heads(share + g * stride, stride, by, from, count, d, out + g * d, 2, bits);
        for (; g < group; g++)
            add_heads(share + g * stride, stride, by, from, count, d, out + g * d, 1, bits);
    }
}

#endif
