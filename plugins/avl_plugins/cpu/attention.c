// One decode step of attention. The rows of each KV head are cut into chunks that any core may read
// (as in FlashDecoding): a chunk's keys stream through, then its values, each row once for all query
// heads of the group. What the chunks found is merged afterwards.
#include "attention.h"

#include "exponent.h"
#include "step_codes.h"
#include "swap.h"

#include <float.h>
#include <string.h>

// Rows of a chunk: long enough for a core to read ahead, short enough that few heads keep many cores
// busy and that its scores stay in the core's first cache.
#define CHUNK 1024

#define SIZE (int64_t)sizeof(float)

// Rows that lie together: `first` is where they begin among all rows of the sequence.
typedef struct {
    const float *keys, *values;
    float *mass; // [R, capacity]
    const float *bias; // of each row, or NULL
    int64_t first, rows, capacity;
    const void *key_codes, *value_codes; // in place of keys and values, of so many bits; and scales,
    const float *key_scales, *value_scales; // where there are any
} place;

// Sizes of the scratch memory: scores [B * Hkv, G, keys], then of every chunk its results
// [B * Hkv, chunks, G, D + 2]: sums of values, the greatest score and the sum of weights.
HELPER int64_t group_of(const avl_step *step) { return step->heads / step->kv_heads; }
HELPER int64_t keys_of(const avl_step *step) { return step->active + step->parked + 1; }
HELPER int64_t chunks_of(const avl_step *step) { return (keys_of(step) + CHUNK - 1) / CHUNK; }

static int64_t chunks(const avl_step *step)
{
    return step->batch * step->kv_heads * chunks_of(step);
}

static int64_t scratch(const avl_step *step)
{
    int64_t results = chunks_of(step) * (step->head_dim + 2);
    return step->batch * step->heads * (keys_of(step) + results);
}

HELPER float *scores_of(const avl_step *step, int64_t part)
{
    return step->scratch + part * group_of(step) * keys_of(step);
}

HELPER float *result_of(const avl_step *step, int64_t part, int64_t chunk)
{
    float *results = step->scratch + step->batch * step->heads * keys_of(step);
    return results + (part * chunks_of(step) + chunk) * group_of(step) * (step->head_dim + 2);
}

HELPER void find_places(const avl_step *step, int64_t part, place places[3])
{
    int64_t row = part / step->kv_heads, d = step->head_dim, r = step->weightings;
    int64_t active = step->active_len[row], parked = step->parked_len[row];
    int64_t a = part * step->active, p = part * step->parked;
    const avl_codes *of = step->codes;
    places[0] = (place){.mass = step->mass_active + a * r, .rows = active,
                        .capacity = step->active};
    places[1] = (place){.mass = step->mass_parked + p * r, .first = active, .rows = parked,
                        .capacity = step->parked};
    places[2] = (place){.mass = step->mass_new + part * r, .first = active + parked, .rows = 1,
                        .capacity = 1};
    if (step->bias_active) {
        places[0].bias = step->bias_active + avl_bias_at(step, part);
        places[1].bias = step->bias_parked + row * step->parked;
        places[2].bias = step->bias_new + row;
    }
    if (!of) {
        places[0].keys = step->k_active + a * d, places[0].values = step->v_active + a * d;
        places[1].keys = step->k_parked + p * d, places[1].values = step->v_parked + p * d;
        places[2].keys = step->k_new + part * d, places[2].values = step->v_new + part * d;
        return;
    }
    const int bits = (int)of->bits;
    const struct {
        const void *keys, *values;
        const float *key_scales, *value_scales;
        int64_t row;
    } kept[3] = {
        {of->k_active, of->v_active, of->k_active_scales, of->v_active_scales, a},
        {of->k_parked, of->v_parked, of->k_parked_scales, of->v_parked_scales, p},
        {of->k_new, of->v_new, of->k_new_scales, of->v_new_scales, part}};
    for (int i = 0; i < 3; i++) {
        const int64_t row = kept[i].row;
        places[i].key_codes = rows_from(kept[i].keys, row, d, bits);
        places[i].value_codes = rows_from(kept[i].values, row, d, bits);
        places[i].key_scales = scales_from(kept[i].key_scales, row, bits);
        places[i].value_scales = scales_from(kept[i].value_scales, row, bits);
    }
}

// Begin to read as many numbers as follow `row` by the distance of `step_ahead`.
HELPER void read_ahead(const float *row, int64_t count, int64_t group)
{
    fetch(row + step_ahead(group) / SIZE, count * SIZE);
}

HELPER void add_bias(int64_t group, const float *restrict bias, int64_t rows,
                     float *restrict scores, int64_t stride)
{
    for (int64_t g = 0; g < group; g++)
        for (int64_t j = 0; j < rows; j++)
            scores[g * stride + j] += bias[j];
}

// The greatest of some scores. NaN is none, so that compilers would compare one after the other.
HELPER float greatest_of(const float *scores, int64_t rows)
{
    float greatest = -FLT_MAX, each[LANES];
    int64_t j = 0;
    lanes top = (lanes){0} - FLT_MAX;
    for (; j + LANES <= rows; j += LANES)
        top = greater(*(const lanes *)(scores + j), top);
    memcpy(each, &top, sizeof each);
    for (int i = 0; i < LANES; i++)
        greatest = each[i] > greatest ? each[i] : greatest;
    for (; j < rows; j++)
        greatest = scores[j] > greatest ? scores[j] : greatest;
    return greatest;
}

// scores become their weights, e ** (score - top); top and the weights' sum are returned.
HELPER void weigh(float *restrict scores, int64_t rows, float *top, float *sum)
{
    const float greatest = greatest_of(scores, rows);
    float total = 0.0f;
    for (int64_t j = 0; j < rows; j++) {
        scores[j] = avl_exp(scores[j] - greatest);
        total += scores[j];
    }
    *top = greatest;
    *sum = total;
}

// out[g] += sum of weights[g, j] * values[j], four rows at a time for fewer passes over out.
HELPER void add_values(const avl_step *step, int64_t d, const float *restrict weights,
                       int64_t stride, const float *restrict values, int64_t rows,
                       float *restrict out)
{
    int64_t group = group_of(step), j = 0;
    for (; j + 4 <= rows; j += 4) {
        read_ahead(values + j * d, 4 * d, group);
        for (int64_t g = 0; g < group; g++) {
            const float *w = weights + g * stride + j, *value = values + j * d;
            float *sum = out + g * d;
            for (int64_t i = 0; i < d; i++)
                sum[i] += w[0] * value[i] + w[1] * value[d + i] + w[2] * value[2 * d + i] +
                          w[3] * value[3 * d + i];
        }
    }
    for (; j < rows; j++)
        for (int64_t g = 0; g < group; g++)
            for (int64_t i = 0; i < d; i++)
                out[g * d + i] += weights[g * stride + j] * values[j * d + i];
}

// What a chunk reads: rows [begin, end) among all of its part.
typedef struct {
    int64_t part, begin, end;
    place places[3];
    float *out, *top, *sum; // its results: [G, D], [G] and [G]
} chunk;

HELPER chunk chunk_at(const avl_step *step, int64_t index)
{
    int64_t part = index / chunks_of(step), number = index % chunks_of(step);
    float *out = result_of(step, part, number), *top = out + group_of(step) * step->head_dim;
    chunk found = {.part = part, .begin = number * CHUNK, .out = out, .top = top,
                   .sum = top + group_of(step)};
    find_places(step, part, found.places);
    found.end = most(found.begin, least(found.begin + CHUNK, found.places[2].first + 1));
    return found;
}

// How many of its rows are in a place, from `from` on; none if that is not positive.
HELPER int64_t rows_in(const chunk *one, const place *of, int64_t *from)
{
    *from = most(one->begin, of->first);
    return least(one->end, of->first + of->rows) - *from;
}

// Rows have so many bits, 0 where they are float32.
HELPER void score_chunk(const avl_step *step, int64_t index, int bits, int64_t d)
{
    const chunk one = chunk_at(step, index);
    int64_t group = group_of(step), stride = keys_of(step), from;
    float *scores = scores_of(step, one.part);
    for (const place *p = one.places; p < one.places + 3; p++) {
        int64_t rows = rows_in(&one, p, &from);
        const float *q = step->q + one.part * group * d;
        const int64_t at = from - p->first;
        // Values are read next, the first of them without a row before them to ask for them.
        if (bits) {
            score_codes(group, step->scale, d, q, rows_from(p->key_codes, at, d, bits),
                        scales_from(p->key_scales, at, bits), rows, scores + from, stride, bits);
            fetch(rows_from(p->value_codes, at, d, bits),
                  least(step_ahead(group), rows * d * bits / 8));
        } else {
            score_codes(group, step->scale, d, q, p->keys + at * d, NULL, rows, scores + from, stride,
                        32);
            fetch(p->values + at * d, least(step_ahead(group), rows * d * SIZE));
        }
        if (p->bias)
            add_bias(group, p->bias + at, rows, scores + from, stride);
    }
    for (int64_t g = 0; g < group; g++)
        weigh(scores + g * stride + one.begin, one.end - one.begin, one.top + g, one.sum + g);
}

HELPER void sum_chunk(const avl_step *step, int64_t index, int bits, int64_t d)
{
    const chunk one = chunk_at(step, index);
    int64_t from;
    const float *weights = scores_of(step, one.part);
    memset(one.out, 0, (size_t)(group_of(step) * d) * sizeof(float));
    for (const place *p = one.places; p < one.places + 3; p++) {
        int64_t rows = rows_in(&one, p, &from);
        const int64_t at = from - p->first;
        if (bits)
            add_codes(group_of(step), d, weights + from, keys_of(step),
                      rows_from(p->value_codes, at, d, bits),
                      scales_from(p->value_scales, at, bits), rows, one.out, bits);
        else
            add_values(step, d, weights + from, keys_of(step), p->values + at * d, rows, one.out);
    }
}

#define FOR_BITS(CHUNK_OF)                                                                         \
    if (!step->codes)                                                                              \
        AVL_FOR_SIZE(CHUNK_OF, step->head_dim, step, index, 0)                                     \
    else if (step->codes->bits == 16)                                                              \
        AVL_FOR_SIZE(CHUNK_OF, step->head_dim, step, index, 16)                                    \
    else                                                                                           \
        AVL_FOR_SIZE(CHUNK_OF, step->head_dim, step, index, 8)

static void score_keys(const avl_step *step, int64_t index)
{
    FOR_BITS(score_chunk)
}

static void sum_values(const avl_step *step, int64_t index)
{
    FOR_BITS(sum_chunk)
}

// mass[r, j] += share[r] * weights[j] for the rows of a place that lie in a chunk.
HELPER void add_mass(const avl_step *step, const place *to, const float *weights, int64_t begin,
                     int64_t end, const float *row_weights, float share)
{
    int64_t from = most(begin, to->first), until = least(end, to->first + to->rows);
    for (int64_t r = 0; r < step->weightings; r++) {
        float *mass = to->mass + r * to->capacity, factor = row_weights[r] * share;
        for (int64_t j = from; j < until; j++)
            mass[j - to->first] += factor * weights[j];
    }
}

// How many chunks of a part have rows.
HELPER int64_t filled(const place places[3])
{
    return (places[2].first + CHUNK) / CHUNK;
}

// What a chunk's weights count for beside those of others: e ** (its top - the greatest top).
HELPER float shrink_of(const avl_step *step, int64_t part, int64_t g, int64_t number, float top)
{
    return avl_exp(result_of(step, part, number)[group_of(step) * step->head_dim + g] - top);
}

// The greatest score of a query head and, relative to it, the sum of its weights.
HELPER void total_of(const avl_step *step, int64_t part, int64_t g, int64_t chunks, float *top,
                     float *sum)
{
    int64_t group = group_of(step), at = group * step->head_dim + g;
    float greatest = -FLT_MAX, total = 0.0f;
    for (int64_t c = 0; c < chunks; c++) {
        float own = result_of(step, part, c)[at];
        greatest = own > greatest ? own : greatest;
    }
    for (int64_t c = 0; c < chunks; c++)
        total += shrink_of(step, part, g, c, greatest) * result_of(step, part, c)[at + group];
    *top = greatest;
    *sum = total;
}

static void sum_masses(const avl_step *step, int64_t part)
{
    int64_t group = group_of(step), stride = keys_of(step);
    const float *row_weights = step->row_weights + part / step->kv_heads * step->weightings;
    place places[3];
    find_places(step, part, places);
    for (int p = 0; p < 3; p++)
        memset(places[p].mass, 0,
               (size_t)(step->weightings * places[p].capacity) * sizeof(float));
    for (int64_t g = 0; g < group; g++) {
        float top, sum;
        total_of(step, part, g, filled(places), &top, &sum);
        for (int64_t c = 0; c < filled(places); c++) {
            float share = shrink_of(step, part, g, c, top) / (sum * (float)group);
            const float *weights = scores_of(step, part) + g * stride;
            int64_t end = least((c + 1) * CHUNK, places[2].first + 1);
            for (int p = 0; p < 3; p++)
                add_mass(step, &places[p], weights, c * CHUNK, end, row_weights, share);
        }
    }
}

static void merge(const avl_step *step, int64_t part)
{
    int64_t group = group_of(step), d = step->head_dim;
    place places[3];
    find_places(step, part, places);
    for (int64_t g = 0; g < group; g++) {
        float *out = step->out + (part * group + g) * d, top, sum;
        total_of(step, part, g, filled(places), &top, &sum);
        memset(out, 0, (size_t)d * sizeof(float));
        for (int64_t c = 0; c < filled(places); c++) {
            const float *result = result_of(step, part, c) + g * d;
            float share = shrink_of(step, part, g, c, top) / sum;
            for (int64_t i = 0; i < d; i++)
                out[i] += share * result[i];
        }
    }
}

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_step_base
#endif
const avl_step_kernels AVL_LEVEL = {scratch,    chunks, score_keys, sum_values,
                                    sum_masses, merge,  swap_rows};
