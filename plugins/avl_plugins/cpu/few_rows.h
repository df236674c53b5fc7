// Scores and sums of values of a block of rows in float32: what few.c reads them with.
#ifndef AVL_FEW_ROWS_H
#define AVL_FEW_ROWS_H

#include "few_lanes.h"
#include "few_places.h"

// Rows are codes, or float32.
HELPER int64_t row_bytes(int64_t d, int coded) { return coded ? d : d * (int64_t)sizeof(float); }

// A block's rows as float32: where they lie, or their codes widened into the core's first cache.
HELPER const float *floats_of(const block *of, int64_t d, int coded, float *widened)
{
    const int8_t *codes = (const int8_t *)of->rows;
    int64_t i = 0;
    if (!coded)
        return (const float *)of->rows;
    for (; i + LANES <= BLOCK * d; i += LANES)
        *(lanes *)(widened + i) = of_bytes(codes + i);
    return widened;
}

// scores[g, j] = factors[j] * q[g] . rows[j], for so many queries and rows: LANES in all.
HELPER void score_some(const float *q, int64_t d, const float *rows, const float *factors,
                       float *scores, int64_t stride, int queries)
{
    const int count = LANES / queries;
    lanes sum[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        lanes key[LANES];
        _Pragma("GCC unroll 16") for (int j = 0; j < count; j++) key[j] = lanes_at(rows + j * d + i);
        _Pragma("GCC unroll 16") for (int g = 0; g < queries; g++)
        {
            const lanes query = lanes_at(q + g * d + i);
            _Pragma("GCC unroll 16") for (int j = 0; j < count; j++)
                sum[g * count + j] = fma_of(query, key[j], sum[g * count + j]);
        }
    }
    float sums[LANES] __attribute__((aligned(64)));
    *(lanes *)sums = sums_of(sum);
    for (int g = 0; g < queries; g++)
        for (int j = 0; j < count; j++) {
            float one = sums[g * count + j];
            for (int64_t k = i; k < d; k++)
                one = fma_one(q[g * d + k], rows[j * d + k], one);
            scores[g * stride + j] = factors[j] * one;
        }
}

// Of so many queries and all rows of a block.
HELPER void score_for(const float *q, int64_t d, const float *rows, const float *factors,
                      float *scores, int64_t stride, int queries)
{
    for (int64_t j = 0; j < BLOCK; j += LANES / queries)
        score_some(q, d, rows + j * d, factors + j, scores + j, stride, queries);
}

// Of any number of queries; `scales` are the rows' own, or NULL.
HELPER void score_block(int64_t queries, float scale, int64_t d, const float *q, const float *rows,
                        const float *scales, float *scores, int64_t stride)
{
    float factors[BLOCK];
    int64_t g = 0;
    for (int64_t j = 0; j < BLOCK; j++)
        factors[j] = scales ? scale * scales[j] : scale;
    for (; g + 4 <= queries; g += 4)
        score_for(q + g * d, d, rows, factors, scores + g * stride, stride, 4);
    for (; g + 2 <= queries; g += 2)
        score_for(q + g * d, d, rows, factors, scores + g * stride, stride, 2);
    for (; g < queries; g++)
        score_for(q + g * d, d, rows, factors, scores + g * stride, stride, 1);
}

// out[g] += the sum of shares[g, j] * rows[j], for so many queries and lanes from column `i` on.
HELPER void add_lanes(float shares[4][BLOCK], const float *rows, int64_t d, float *out, int64_t i,
                      int queries, int wide)
{
    lanes sum[4][4];
    _Pragma("GCC unroll 4") for (int g = 0; g < queries; g++)
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            sum[g][x] = lanes_at(out + g * d + i + x * LANES);
    for (int64_t j = 0; j < BLOCK; j++) {
        lanes value[4];
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            value[x] = lanes_at(rows + j * d + i + x * LANES);
        _Pragma("GCC unroll 4") for (int g = 0; g < queries; g++)
        {
            const lanes share = all_of(shares[g][j]);
            _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
                sum[g][x] = fma_of(share, value[x], sum[g][x]);
        }
    }
    _Pragma("GCC unroll 4") for (int g = 0; g < queries; g++)
        _Pragma("GCC unroll 4") for (int x = 0; x < wide; x++)
            *(lanes *)(out + g * d + i + x * LANES) = sum[g][x];
}

// The same of all columns; a weight counts for its row's scale, too.
HELPER void add_for(const float *weights, int64_t stride, const float *rows, const float *scales,
                    int64_t d, float *out, int queries)
{
    float shares[4][BLOCK] __attribute__((aligned(64)));
    for (int g = 0; g < queries; g++)
        for (int j = 0; j < BLOCK; j += LANES) {
            lanes weight = lanes_at(weights + g * stride + j);
            if (scales)
                weight *= lanes_at(scales + j);
            *(lanes *)(shares[g] + j) = weight;
        }
    int64_t i = 0;
    for (; i + WIDE * LANES <= d; i += WIDE * LANES)
        add_lanes(shares, rows, d, out, i, queries, WIDE);
    for (; i + LANES <= d; i += LANES)
        add_lanes(shares, rows, d, out, i, queries, 1);
    for (; i < d; i++)
        for (int g = 0; g < queries; g++)
            for (int64_t j = 0; j < BLOCK; j++)
                out[g * d + i] = fma_one(shares[g][j], rows[j * d + i], out[g * d + i]);
}

// Of any number of queries.
HELPER void add_block(int64_t queries, int64_t d, const float *weights, int64_t stride,
                      const float *rows, const float *scales, float *out)
{
    int64_t g = 0;
    for (; g + 4 <= queries; g += 4)
        add_for(weights + g * stride, stride, rows, scales, d, out + g * d, 4);
    for (; g + 2 <= queries; g += 2)
        add_for(weights + g * stride, stride, rows, scales, d, out + g * d, 2);
    for (; g < queries; g++)
        add_for(weights + g * stride, stride, rows, scales, d, out + g * d, 1);
}

#endif
