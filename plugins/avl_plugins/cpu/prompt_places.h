// Where the keys of a prompt's rows lie, and which of them a row sees.
#ifndef AVL_PROMPT_PLACES_H
#define AVL_PROMPT_PLACES_H

#include "prompt.h"

// Into loops, so that sizes are known there and sums stay in registers.
#define HELPER static inline __attribute__((always_inline))

HELPER int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HELPER int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows of a head, [rows, D], as they are stored. Kernels read them through `floats_of` alone.
typedef struct {
    const float *data;
} stored_rows;

// Rows [from, from + count) as float32: where they lie, if they are stored so. `room` is for rows
// that would have to be widened first, for `count` of them.
HELPER const float *floats_of(const stored_rows *of, int64_t from, int64_t count, int64_t d,
                              float *room)
{
    (void)count, (void)room;
    return of->data + from * d;
}

// Begin to read as many cache lines of rows from `from` on as there are in numbers [begin, end) of
// them, into the second cache.
HELPER void fetch_rows(const stored_rows *of, int64_t from, int64_t d, int64_t begin, int64_t end)
{
    enum { LINE = 16 }; // numbers that a cache reads at a time
    for (int64_t i = begin; i < end; i += LINE)
        __builtin_prefetch(of->data + from * d + i, 0, 2);
}

// Rows that lie together: `first` is where they begin among all keys of the sequence.
typedef struct {
    stored_rows keys, values;
    float *mass; // [R, capacity]
    int64_t first, rows, capacity;
    int causal;
} place;

HELPER int64_t rows_of(const avl_prompt *prompt) { return prompt->group * prompt->step->rows; }

HELPER void find_places(const avl_step *step, int64_t part, place places[3])
{
    int64_t sequence = part / step->kv_heads, d = step->head_dim, r = step->weightings;
    int64_t active = step->active_len[sequence], parked = step->parked_len[sequence];
    int64_t a = part * step->active, p = part * step->parked, n = part * step->rows;
    places[0] = (place){{step->k_active + a * d}, {step->v_active + a * d},
                        step->mass_active + a * r, 0, active, step->active, 0};
    places[1] = (place){{step->k_parked + p * d}, {step->v_parked + p * d},
                        step->mass_parked + p * r, active, parked, step->parked, 0};
    places[2] = (place){{step->k_new + n * d}, {step->v_new + n * d}, step->mass_new + n * r,
                        active + parked, step->rows, step->rows, 1};
}

// How many of `keys` keys of a place, from `from` on, a new row's queries see.
HELPER int64_t seen_by(const place *of, int64_t from, int64_t keys, int64_t new_row)
{
    return of->causal ? most(0, least(keys, new_row + 1 - from)) : keys;
}

#endif
