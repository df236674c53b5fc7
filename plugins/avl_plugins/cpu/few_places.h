// Where the rows lie that few.c reads, BLOCK of them at a time.
#ifndef AVL_FEW_PLACES_H
#define AVL_FEW_PLACES_H

#include "ahead.h"
#include "attention.h"

#include <stddef.h>
#include <string.h>

// Rows that are read together, and rows of a chunk: long enough for a core to read ahead, short enough
// that few heads keep many cores busy and that its scores stay in the core's first cache.
enum { BLOCK = 16, CHUNK = 1024 };

// Keys or values of a head: rows of so many bytes, and their scales if they are codes.
typedef struct {
    const char *rows;
    const float *scales;
} stored;

// Rows that lie together: `first` is where they begin among all rows of the sequence.
typedef struct {
    stored keys, values;
    float *mass; // [R, capacity]
    int64_t first, rows, capacity;
} place;

// Rows from `row` on: codes where a step has them, whatever else it holds.
HELPER stored stored_at(const avl_step *step, const float *numbers, const void *codes,
                        const float *scales, int64_t row)
{
    const int64_t at = row * step->head_dim;
    if (!step->codes)
        return (stored){(const char *)(numbers + at), NULL};
    return (stored){(const char *)codes + at, scales + row};
}

HELPER void find_places(const avl_step *step, int64_t part, place places[3])
{
    static const avl_codes none;
    const avl_codes *of = step->codes ? step->codes : &none;
    const int64_t sequence = part / step->kv_heads, r = step->weightings;
    const int64_t active = step->active_len[sequence], parked = step->parked_len[sequence];
    const int64_t a = part * step->active, p = part * step->parked, n = part * step->rows;
    places[0] = (place){stored_at(step, step->k_active, of->k_active, of->k_active_scales, a),
                        stored_at(step, step->v_active, of->v_active, of->v_active_scales, a),
                        step->mass_active + a * r, 0, active, step->active};
    places[1] = (place){stored_at(step, step->k_parked, of->k_parked, of->k_parked_scales, p),
                        stored_at(step, step->v_parked, of->v_parked, of->v_parked_scales, p),
                        step->mass_parked + p * r, active, parked, step->parked};
    places[2] = (place){stored_at(step, step->k_new, of->k_new, of->k_new_scales, n),
                        stored_at(step, step->v_new, of->v_new, of->v_new_scales, n),
                        step->mass_new + n * r, active + parked, step->rows, step->rows};
}

// BLOCK rows that lie together.
typedef struct {
    const char *rows;
    const float *scales; // of codes
} block;

// Numbers of the room in which find_block puts rows together.
HELPER int64_t together_size(int64_t d) { return BLOCK * (d + 1); }

// Rows [from, from + count) of all, of so many bytes each, and behind the last one itself again; asks
// for what comes `ahead` rows later.
HELPER block find_block(const place places[3], int64_t from, int64_t count, int64_t bytes, int values,
                        int64_t ahead, float *together)
{
    for (const place *p = places; p < places + 3; p++) {
        const stored *in = values ? &p->values : &p->keys;
        const int64_t at = from - p->first;
        if (at < 0 || at + BLOCK > p->rows)
            continue;
        fetch(in->rows + (at + ahead) * bytes, BLOCK * bytes);
        return (block){in->rows + at * bytes, in->scales ? in->scales + at : NULL};
    }
    float *scales = together;
    char *rows = (char *)(together + BLOCK);
    const int coded = places->keys.scales != NULL;
    for (int64_t j = 0; j < BLOCK; j++) {
        const int64_t row = from + least(j, count - 1);
        const place *p = &places[row >= places[2].first ? 2 : row >= places[1].first ? 1 : 0];
        const stored *in = values ? &p->values : &p->keys;
        const char *own = in->rows + (row - p->first) * bytes;
        memcpy(rows + j * bytes, own, (size_t)bytes);
        if (coded)
            scales[j] = in->scales[row - p->first];
        fetch(own + ahead * bytes, bytes);
    }
    return (block){rows, coded ? scales : NULL};
}

#endif
