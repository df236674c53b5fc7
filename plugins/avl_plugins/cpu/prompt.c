// Attention of a prompt's rows, in tiles of a few query rows and KEYS keys. Scores stay in the
// core's first cache: a tile's become weights relative to the greatest so far, and the sums of
// values shrink when a greater one comes (online softmax, as in FlashAttention). Cached rows are
// read where they lie; keys are packed once for all query rows of a task. What keys received is
// found afterwards, by the scores of those rows alone that have a weight.
#include "prompt_weigh.h"

// out[r] = shrink[r] * out[r] + the sum of weights[r, j] * values[j]; so many lanes of each, from
// column `i` on.
HELPER void add_lanes(const tile *of, float weights[ROWS][KEYS], const float shrink[ROWS],
                      const float *restrict values, int64_t d, int64_t count, int64_t i, int wide)
{
    lanes sum[ROWS][WIDE];
    EACH_ROW(r) EACH_WIDE(x, wide)
        sum[r][x] = shrink[r] * *(const lanes *)(of->out[r] + i + x * LANES);
    for (int64_t j = 0; j < count; j++) {
        lanes value[WIDE];
        EACH_WIDE(x, wide) value[x] = *(const lanes *)(values + j * d + i + x * LANES);
        EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] += weights[r][j] * value[x];
    }
    EACH_ROW(r) EACH_WIDE(x, wide) *(lanes *)(of->out[r] + i + x * LANES) = sum[r][x];
}

HELPER void add_values(const tile *of, float weights[ROWS][KEYS], const float shrink[ROWS],
                       const float *restrict values, int64_t d, int64_t count)
{
    int64_t i = 0;
    for (; i + WIDE * LANES <= d; i += WIDE * LANES)
        add_lanes(of, weights, shrink, values, d, count, i, WIDE);
    for (; i + LANES <= d; i += LANES)
        add_lanes(of, weights, shrink, values, d, count, i, 1);
    for (; i < d; i++)
        for (int r = 0; r < of->count; r++) {
            float sum = shrink[r] * of->out[r][i];
            for (int64_t j = 0; j < count; j++)
                sum += weights[r][j] * values[j * d + i];
            of->out[r][i] = sum;
        }
}

// Where scores of a tile's row are kept, from a place's key `from` on.
HELPER float *kept_at(const avl_prompt *prompt, int64_t part, const tile *of, int r,
                      const place *in, int64_t from)
{
    const int64_t row = part * rows_of(prompt) + of->row[r];
    return prompt->scores + row * prompt->keys + in->first + from;
}

// Adds what a place's rows, from `from` on, are biased by to a tile's scores of the first `count`.
HELPER void add_bias(const tile *of, const place *in, int64_t from, int64_t count,
                     float scores[ROWS][KEYS])
{
    for (int r = 0; in->bias && r < ROWS; r++) {
        const float *bias = in->bias + of->new_row[r] * in->capacity + from;
        for (int64_t j = 0; j < count; j++)
            scores[r][j] += AVL_LOG2_E * bias[j];
    }
}

HELPER void attend_tile(const avl_prompt *prompt, int64_t part, tile *of, const place *in,
                        int64_t from, int64_t keys, const float *packed, const float *values,
                        int64_t d)
{
    int64_t count = seen_by(in, from, keys, of->new_row[ROWS - 1]);
    if (!count)
        return;
    float weights[ROWS][KEYS] __attribute__((aligned(64))), shrink[ROWS];
    score(of, packed, d, count, prompt->step->scale, weights);
    add_bias(of, in, from, count, weights);
    for (int r = 0; prompt->scores && r < of->count; r++)
        memcpy(kept_at(prompt, part, of, r, in, from), weights[r], (size_t)count * sizeof(float));
    weigh(of, in, from, keys, weights, shrink);
    add_values(of, weights, shrink, values, d, count);
}

// A thread's memory: keys in the order in which they are read, and rows that were widened.
typedef struct {
    float *packed, *keys, *values;
} room;

HELPER room room_at(float *memory, int64_t d)
{
    return (room){memory, memory + d * KEYS, memory + 2 * d * KEYS};
}

HELPER void attend_keys(const avl_prompt *prompt, int64_t task, float *memory, int64_t d)
{
    const avl_step *step = prompt->step;
    const int64_t span = task % prompt->spans, block = task / prompt->spans % prompt->blocks;
    const int64_t part = task / prompt->spans / prompt->blocks, rows = rows_of(prompt);
    const int64_t begin = span * prompt->span, first = block * prompt->block;
    const int64_t end = least(rows, first + prompt->block), at = part * prompt->spans + span;
    const int alone = prompt->spans == 1;
    float *out = alone ? step->out + start_of(step, part, prompt->group)
                       : prompt->span_out + at * rows * d;
    const room own = room_at(memory, d);
    tile tiles[TILES];
    const int64_t count = tiles_at(prompt, part, out, first, end, tiles);
    for (int64_t i = 0; i < count; i++)
        EACH_ROW(r) memset(tiles[i].out[r], 0, (size_t)d * sizeof(float));
    place places[3];
    find_places(step, part, places);
    for (const place *in = places; in < places + 3; in++) {
        int64_t until = least(in->rows, begin + prompt->span - in->first);
        until = seen_by(in, 0, until, (end - 1) / prompt->group);
        for (int64_t from = most(0, begin - in->first); from < until; from += KEYS) {
            int64_t keys = least(KEYS, until - from);
            pack(floats_of(&in->keys, from, keys, d, own.keys), keys, d, own.packed);
            const float *values = floats_of(&in->values, from, keys, d, own.values);
            for (int64_t i = 0; i < count; i++) {
                // The tiles of this block ask for the next one, each for its share.
                const int64_t asked = i * KEYS * d / count, ask = (i + 1) * KEYS * d / count;
                fetch_rows(&in->keys, from + KEYS, d, asked, ask);
                fetch_rows(&in->values, from + KEYS, d, asked, ask);
                attend_tile(prompt, part, tiles + i, in, from, keys, own.packed, values, d);
            }
        }
    }
    float *tops = (alone ? prompt->tops : prompt->span_tops) + at * rows;
    float *sums = (alone ? prompt->sums : prompt->span_sums) + at * rows;
    for (const tile *of = tiles; of < tiles + count; of++)
        for (int r = 0; r < of->count; r++) {
            tops[of->row[r]] = of->top[r];
            sums[of->row[r]] = of->sum[r];
            const float share = 1.0f / of->sum[r];
            for (int64_t i = 0; alone && i < d; i++)
                of->out[r][i] *= share;
        }
}

static void attend(const avl_prompt *prompt, int64_t task, float *memory)
{
    AVL_FOR_SIZE(attend_keys, prompt->step->head_dim, prompt, task, memory)
}

// A row's greatest score and sum of weights, from those of so many spans; returns the former.
static float merge_row(const avl_prompt *prompt, int64_t part, int64_t row, int64_t spans)
{
    const int64_t rows = rows_of(prompt), first = part * spans * rows + row;
    float top = -FLT_MAX, sum = 0.0f;
    for (int64_t span = 0; span < spans; span++) {
        float own = prompt->span_tops[first + span * rows];
        top = own > top ? own : top;
    }
    for (int64_t span = 0; span < spans; span++)
        sum += avl_exp2(prompt->span_tops[first + span * rows] - top) *
               prompt->span_sums[first + span * rows];
    prompt->tops[part * rows + row] = top;
    prompt->sums[part * rows + row] = sum;
    return top;
}

static void merge(const avl_prompt *prompt, int64_t part, float *memory)
{
    (void)memory;
    const int64_t rows = rows_of(prompt), d = prompt->step->head_dim, g = prompt->group;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = (row % g * prompt->step->rows + row / g) * d;
        float *out = prompt->step->out + part * rows * d + at;
        const float top = merge_row(prompt, part, row, prompt->spans);
        memset(out, 0, (size_t)d * sizeof(float));
        for (int64_t span = part * prompt->spans; span < (part + 1) * prompt->spans; span++) {
            float shrink = avl_exp2(prompt->span_tops[span * rows + row] - top);
            const float *found = prompt->span_out + span * rows * d + at;
            for (int64_t i = 0; i < d; i++)
                out[i] += shrink * found[i];
        }
        for (int64_t i = 0; i < d; i++)
            out[i] /= prompt->sums[part * rows + row];
    }
}

// What keys receive from a tile.
HELPER void add_masses(const avl_prompt *prompt, int64_t part, const tile *of, const place *in,
                       int64_t from, int64_t keys, const float *packed)
{
    const avl_step *step = prompt->step;
    if (!seen_by(in, from, keys, of->new_row[of->count - 1]))
        return;
    float scores[ROWS][KEYS] __attribute__((aligned(64))) = {{0}};
    if (!prompt->scores)
        score(of, packed, step->head_dim, KEYS, step->scale, scores);
    if (!prompt->scores)
        add_bias(of, in, from, keys, scores);
    const int64_t sequence = part / step->kv_heads;
    const float *weights = step->row_weights + sequence * step->weightings * step->rows;
    for (int r = 0; r < of->count; r++) {
        int64_t new_row = of->new_row[r], at = part * rows_of(prompt) + of->row[r];
        int64_t seen = seen_by(in, from, keys, new_row);
        if (prompt->scores)
            memcpy(scores[r], kept_at(prompt, part, of, r, in, from), (size_t)seen * sizeof(float));
        const float top = prompt->tops[at], sum = prompt->sums[at] * (float)prompt->group;
        for (int j = 0; j < KEYS; j++)
            scores[r][j] = avl_exp2(scores[r][j] - top) / sum;
        for (int64_t weighting = 0; weighting < step->weightings; weighting++) {
            float weight = weights[weighting * step->rows + new_row];
            float *mass = in->mass + weighting * in->capacity + from;
            for (int64_t j = 0; j < seen; j++)
                mass[j] += weight * scores[r][j];
        }
    }
}

// Adds to the sums of a tile's weights, at `span` of the mass spans.
HELPER void add_sums(const avl_prompt *prompt, int64_t span, tile *of, const place *in,
                     int64_t from, int64_t keys, const float *packed)
{
    float scores[ROWS][KEYS] __attribute__((aligned(64))), shrink[ROWS];
    score(of, packed, prompt->step->head_dim, KEYS, prompt->step->scale, scores);
    add_bias(of, in, from, keys, scores);
    int64_t at[ROWS];
    EACH_ROW(r) at[r] = span * rows_of(prompt) + of->row[r < of->count ? r : of->count - 1];
    EACH_ROW(r) {
        of->top[r] = prompt->span_tops[at[r]];
        of->sum[r] = prompt->span_sums[at[r]];
    }
    weigh(of, in, from, keys, scores, shrink);
    for (int r = 0; r < of->count; r++) {
        prompt->span_tops[at[r]] = of->top[r];
        prompt->span_sums[at[r]] = of->sum[r];
    }
}

// What is done with the rows that have a weight and a span's keys, a tile at a time.
HELPER void for_wanted(const avl_prompt *prompt, int64_t task, float *memory, int sums)
{
    const avl_step *step = prompt->step;
    const int64_t part = task / prompt->mass_spans, d = step->head_dim, g = prompt->group;
    const int64_t begin = task % prompt->mass_spans * prompt->mass_span;
    const int64_t sequence = part / step->kv_heads, wanted = prompt->wanted[sequence] * g;
    const int64_t *new_rows = prompt->wanted_rows + sequence * step->rows;
    const room own = room_at(memory, d);
    place places[3];
    find_places(step, part, places);
    for (const place *in = places; wanted && in < places + 3; in++) {
        int64_t until = least(in->rows, begin + prompt->mass_span - in->first);
        for (int64_t from = most(0, begin - in->first); from < until; from += KEYS) {
            int64_t keys = least(KEYS, until - from);
            if (!prompt->scores)
                pack(floats_of(&in->keys, from, keys, d, own.keys), keys, d, own.packed);
            for (int64_t first = 0; first < wanted; first += ROWS) {
                tile of = {.count = 0};
                for (int64_t i = first; i < wanted && of.count < ROWS; i++)
                    add_row(prompt, &of, part, step->out, new_rows[i / g], i % g);
                repeat_last_row(&of);
                if (sums)
                    add_sums(prompt, task, &of, in, from, keys, own.packed);
                else
                    add_masses(prompt, part, &of, in, from, keys, own.packed);
            }
        }
    }
}

static void sum_masses(const avl_prompt *prompt, int64_t task, float *memory)
{
    for_wanted(prompt, task, memory, 0);
}

static void find_sums(const avl_prompt *prompt, int64_t task, float *memory)
{
    const int64_t rows = rows_of(prompt);
    for (int64_t at = task * rows; at < (task + 1) * rows; at++) {
        prompt->span_tops[at] = -FLT_MAX;
        prompt->span_sums[at] = 0.0f;
    }
    for_wanted(prompt, task, memory, 1);
}

static void merge_sums(const avl_prompt *prompt, int64_t part, float *memory)
{
    (void)memory;
    for (int64_t row = 0; row < rows_of(prompt); row++)
        merge_row(prompt, part, row, prompt->mass_spans);
}

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_prompt_base
#endif
const avl_prompt_kernels AVL_LEVEL = {attend, merge, find_sums, merge_sums, sum_masses};
