// Attention of two to AVL_FEW_ROWS new rows. The rows of each KV head are cut into chunks that any
// core may read (as in FlashDecoding): a chunk's keys stream through, then its values, each row once
// for all queries: the new rows of all query heads of the group. What the chunks found is merged
// afterwards. A query's result does not depend on the others, to the last bit.
#include "few.h"

#if defined(AVL_UNKNOWN) // to the compiler

const avl_few_kernels AVL_LEVEL = {0};

#else

#include "few_dots.h"
#include "few_rows.h"
#include "few_tiles.h"

#include <float.h>
#include <math.h>
#include <string.h>

// Queries for which more rows are on their way: more would not stay in the second cache.
#define MOST_AHEAD 8

HELPER int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// Queries [G, S] of a part: query i is new row i % S of the group's head i / S.
HELPER int64_t queries_of(const avl_step *step) { return step->heads / step->kv_heads * step->rows; }
HELPER int64_t keys_of(const avl_step *step)
{
    return whole(step->active + step->parked + step->rows, BLOCK);
}
HELPER int64_t chunks_of(const avl_step *step) { return (keys_of(step) + CHUNK - 1) / CHUNK; }

static int64_t chunks(const avl_step *step) { return chunks_of(step); }

// Whether scores are products of bytes, and whether these and sums of values are found on matrix
// registers.
HELPER int takes_dots(const avl_step *step) { return step->codes && step->head_dim <= MOST_DOTS; }
HELPER int takes_tiles(const avl_step *step) { return ON_TILES && takes_dots(step); }

// Numbers of a chunk's memory: its results [G * S, D + 2], which are sums of values, the greatest score
// and the sum of weights of each query, and rows that were put together, and widened.
HELPER int64_t results_of(const avl_step *step)
{
    return whole(queries_of(step) * (step->head_dim + 2), BLOCK);
}
HELPER int64_t chunk_size(const avl_step *step)
{
    return results_of(step) + together_size(step->head_dim) + BLOCK * step->head_dim;
}

// A part's scratch: scores [G * S, keys]; masses [keys]; of every chunk its memory; queries of
// products of bytes. Each begins where a cache line does.
static int64_t scratch(const avl_step *step)
{
    const int64_t dots = takes_dots(step) ? dots_size(queries_of(step), step->head_dim) : 0;
    return whole((queries_of(step) + 1) * keys_of(step) + chunks_of(step) * chunk_size(step) + dots,
                 BLOCK);
}

// Where they are in it.
HELPER float *masses_of(const avl_step *step, float *room)
{
    return room + queries_of(step) * keys_of(step);
}

HELPER float *result_of(const avl_step *step, float *room, int64_t chunk)
{
    return masses_of(step, room) + keys_of(step) + chunk * chunk_size(step);
}

HELPER float *dots_of(const avl_step *step, float *room)
{
    return result_of(step, room, chunks_of(step));
}

static void prepare(const avl_step *step, int64_t part, float *room)
{
    const int64_t queries = queries_of(step), d = step->head_dim;
    if (takes_dots(step))
        make_dots(step->q + part * queries * d, queries, d, step->scale, dots_of(step, room));
}

// How many rows a query sees, of which those before the new ones are `cached`.
HELPER int64_t seen_by(const avl_step *step, int64_t query, int64_t cached)
{
    return cached + query % step->rows + 1;
}

// The first `seen` scores become their weights, e ** (score - top), and the others, up to `rows`, 0;
// top and the weights' sum are returned. There is room for whole blocks.
HELPER void weigh(float *restrict scores, int64_t seen, int64_t rows, float *top, float *sum)
{
    const int64_t end = whole(most(0, seen), LANES);
    for (int64_t j = most(0, seen); j < end; j++)
        scores[j] = -INFINITY;
    lanes greatest = all_of(-FLT_MAX), total = {0};
    for (int64_t j = 0; j < end; j += LANES)
        greatest = greater(lanes_at(scores + j), greatest);
    const float highest = greatest_lane(greatest);
    exponents_of(scores, end, highest);
    for (int64_t j = 0; j < end; j += LANES)
        total += lanes_at(scores + j);
    for (int64_t j = end; j < whole(rows, BLOCK); j++)
        scores[j] = 0.0f;
    *top = highest;
    *sum = lane_sum(total);
}

// What a chunk reads: rows [begin, end) among all of its part.
typedef struct {
    int64_t part, begin, end;
    place places[3];
    float *out, *top, *sum; // its results: [G * S, D], [G * S] and [G * S]
    float *together, *widened;
} chunk;

HELPER chunk chunk_at(const avl_step *step, int64_t index, float *room)
{
    int64_t part = index / chunks_of(step), number = index % chunks_of(step);
    float *out = result_of(step, room, number), *top = out + queries_of(step) * step->head_dim;
    chunk found = {.part = part, .begin = number * CHUNK, .out = out, .top = top,
                   .sum = top + queries_of(step), .together = out + results_of(step)};
    found.widened = found.together + together_size(step->head_dim);
    find_places(step, part, found.places);
    const int64_t all = found.places[2].first + step->rows;
    found.end = most(found.begin, least(found.begin + CHUNK, all));
    return found;
}

// Rows of so many bytes that are on their way ahead of those that are read.
HELPER int64_t ahead_of(int64_t queries, int64_t bytes)
{
    return AHEAD * least(queries, MOST_AHEAD) / bytes;
}

// Scores of a chunk, a block of rows at a time.
HELPER void score_blocks(const avl_step *step, const chunk *one, float *room, int64_t ahead, int64_t d)
{
    const int coded = step->codes != NULL;
    const int64_t queries = queries_of(step), stride = keys_of(step);
    for (int64_t from = one->begin; from < one->end; from += BLOCK) {
        const int64_t count = least(BLOCK, one->end - from);
        const block rows = find_block(one->places, from, count, row_bytes(d, coded), 0, ahead,
                                      one->together);
        if (takes_dots(step))
            dots_block(queries, d, dots_of(step, room), &rows, room + from, stride);
        else
            score_block(queries, step->scale, d, step->q + one->part * queries * d,
                        floats_of(&rows, d, coded, one->widened), rows.scales, room + from, stride);
    }
}

HELPER void score_chunk(const avl_step *step, int64_t index, float *room, int64_t d)
{
    const chunk one = chunk_at(step, index, room);
    const int coded = step->codes != NULL;
    const int64_t queries = queries_of(step), stride = keys_of(step);
    const int64_t bytes = row_bytes(d, coded), ahead = ahead_of(queries, bytes);
    float *scores = room;
    if (takes_tiles(step))
        score_on_tiles(one.places, one.begin, one.end, queries, d, dots_of(step, room),
                       scores + one.begin, stride, ahead, one.together);
    else
        score_blocks(step, &one, room, ahead, d);
    // Values are read next, the first of them without a row before them to ask for them.
    for (const place *p = one.places; p < one.places + 3; p++) {
        const int64_t from = most(one.begin, p->first), until = least(one.end, p->first + p->rows);
        fetch(p->values.rows + (from - p->first) * bytes, least(ahead, until - from) * bytes);
    }
    for (int64_t i = 0; i < queries; i++) {
        const int64_t seen = least(one.end, seen_by(step, i, one.places[2].first)) - one.begin;
        weigh(scores + i * stride + one.begin, seen, one.end - one.begin, one.top + i, one.sum + i);
    }
}

HELPER void sum_chunk(const avl_step *step, int64_t index, float *room, int64_t d)
{
    const chunk one = chunk_at(step, index, room);
    const int coded = step->codes != NULL;
    const int64_t queries = queries_of(step), stride = keys_of(step);
    const int64_t bytes = row_bytes(d, coded), ahead = ahead_of(queries, bytes);
    const float *weights = room;
    if (takes_tiles(step)) {
        sum_on_tiles(one.places, one.begin, one.end, queries, d, weights + one.begin, stride, ahead,
                     one.together, one.out);
        return;
    }
    memset(one.out, 0, (size_t)(queries * d) * sizeof(float));
    for (int64_t from = one.begin; from < one.end; from += BLOCK) {
        const int64_t count = least(BLOCK, one.end - from);
        const block rows = find_block(one.places, from, count, bytes, 1, ahead, one.together);
        add_block(queries, d, weights + from, stride, floats_of(&rows, d, coded, one.widened),
                  rows.scales, one.out);
    }
}

static void score_keys(const avl_step *step, int64_t index, float *room)
{
    AVL_FOR_SIZE(score_chunk, step->head_dim, step, index, room)
}

static void sum_values(const avl_step *step, int64_t index, float *room)
{
    AVL_FOR_SIZE(sum_chunk, step->head_dim, step, index, room)
}

// How many chunks have rows that are seen, of so many.
HELPER int64_t filled(int64_t seen) { return (seen + CHUNK - 1) / CHUNK; }

// What a chunk's weights count for beside those of others: e ** (its top - the greatest top).
HELPER float shrink_of(const avl_step *step, float *room, int64_t i, int64_t number, float top)
{
    return avl_exp(result_of(step, room, number)[queries_of(step) * step->head_dim + i] - top);
}

// The greatest score of a query and, relative to it, the sum of its weights.
HELPER void total_of(const avl_step *step, float *room, int64_t i, int64_t chunks, float *top,
                     float *sum)
{
    int64_t queries = queries_of(step), at = queries * step->head_dim + i;
    float greatest = -FLT_MAX, total = 0.0f;
    for (int64_t c = 0; c < chunks; c++) {
        float own = result_of(step, room, c)[at];
        greatest = own > greatest ? own : greatest;
    }
    for (int64_t c = 0; c < chunks; c++)
        total = fma_one(shrink_of(step, room, i, c, greatest),
                        result_of(step, room, c)[at + queries], total);
    *top = greatest;
    *sum = total;
}

// Whether a new row has a weight in any of the weightings [R, S].
HELPER int is_weighted(const avl_step *step, const float *row_weights, int64_t row)
{
    int found = 0;
    for (int64_t w = 0; w < step->weightings; w++)
        found |= row_weights[w * step->rows + row] != 0.0f;
    return found;
}

// mass[j] += what keys receive by weighting `w` of [R, S].
HELPER void add_mass(const avl_step *step, float *room, const float *row_weights, int64_t w,
                     int64_t cached, float *restrict mass)
{
    const int64_t queries = queries_of(step), stride = keys_of(step);
    for (int64_t i = 0; i < queries; i++) {
        if (!is_weighted(step, row_weights, i % step->rows))
            continue;
        const float weight = row_weights[w * step->rows + i % step->rows];
        const int64_t seen = seen_by(step, i, cached);
        const float *weights = room + i * stride;
        float top, sum;
        total_of(step, room, i, filled(seen), &top, &sum);
        sum *= (float)(queries / step->rows);
        for (int64_t c = 0; c < filled(seen); c++) {
            const float share = weight * shrink_of(step, room, i, c, top) / sum;
            for (int64_t j = c * CHUNK; j < least((c + 1) * CHUNK, seen); j++)
                mass[j] += share * weights[j];
        }
    }
}

static void sum_masses(const avl_step *step, int64_t part, float *room)
{
    const int64_t r = step->weightings;
    const float *row_weights = step->row_weights + part / step->kv_heads * r * step->rows;
    float *mass = masses_of(step, room);
    place places[3];
    find_places(step, part, places);
    for (int64_t w = 0; w < r; w++) {
        memset(mass, 0, (size_t)keys_of(step) * sizeof(float));
        add_mass(step, room, row_weights, w, places[2].first, mass);
        for (const place *p = places; p < places + 3; p++) {
            float *to = p->mass + w * p->capacity;
            memset(to, 0, (size_t)p->capacity * sizeof(float));
            memcpy(to, mass + p->first, (size_t)p->rows * sizeof(float));
        }
    }
}

static void merge(const avl_step *step, int64_t part, float *room)
{
    int64_t queries = queries_of(step), d = step->head_dim;
    place places[3];
    find_places(step, part, places);
    for (int64_t i = 0; i < queries; i++) {
        const int64_t chunks = filled(seen_by(step, i, places[2].first));
        float *restrict out = step->out + (part * queries + i) * d, top, sum;
        total_of(step, room, i, chunks, &top, &sum);
        memset(out, 0, (size_t)d * sizeof(float));
        for (int64_t c = 0; c < chunks; c++) {
            const float *restrict result = result_of(step, room, c) + i * d;
            float share = shrink_of(step, room, i, c, top) / sum;
            for (int64_t k = 0; k < d; k++)
                out[k] = fma_one(share, result[k], out[k]);
        }
    }
}

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_few_base
#endif
const avl_few_kernels AVL_LEVEL = {scratch,    chunks,     prepare, score_keys,
                                   sum_values, sum_masses, merge};

#endif
