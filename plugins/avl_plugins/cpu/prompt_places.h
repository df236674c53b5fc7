// Where the keys of a prompt's rows lie, and which of them a row sees.
#ifndef AVL_PROMPT_PLACES_H
#define AVL_PROMPT_PLACES_H

#include "ahead.h"
#include "halves.h"
#include "prompt.h"

// How far, in powers of two, scores may exceed the greatest one that was taken so far, before what they
// are taken relative to becomes that of them.
enum { KEPT = 8 };

// Rows of a head, [rows, D], as they are stored: float32, or of so many bits (codes.h), with a scale
// for each row where those are 8. Kernels read them through `view_of` and
// `floats_of` alone.
typedef struct {
    const float *data;
    int64_t stride; // numbers from one row of `data` to the next
    const void *codes;
    const float *scales;
    int64_t bits;
} stored_rows;

// Rows as float32, and the numbers from one to the next.
typedef struct {
    const float *at;
    int64_t stride;
} row_view;

// Rows [from, from + count) as float32: where they lie, if they are stored so, or widened into
// `room`, which is for `count` of them.
HELPER row_view view_of(const stored_rows *of, int64_t from, int64_t count, int64_t d,
                        float *restrict room)
{
    if (of->data)
        return (row_view){of->data + from * of->stride, of->stride};
    if (of->bits == 16) {
        const uint16_t *halves = (const uint16_t *)of->codes + from * d;
        for (int64_t i = 0; i < count * d; i++)
            room[i] = of_half(halves[i]);
        return (row_view){room, d};
    }
    for (int64_t j = 0; j < count; j++) {
        const float scale = of->scales[from + j];
        const int8_t *codes = (const int8_t *)of->codes + (from + j) * d;
        for (int64_t i = 0; i < d; i++)
            room[j * d + i] = scale * (float)codes[i];
    }
    return (row_view){room, d};
}

// The same without gaps between rows: far apart they would displace each other from the core's first
// cache, where they are read again and again.
HELPER const float *floats_of(const stored_rows *of, int64_t from, int64_t count, int64_t d,
                              float *restrict room)
{
    const row_view rows = view_of(of, from, count, d, room);
    if (rows.stride == d)
        return rows.at;
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < d; i++)
            room[j * d + i] = rows.at[j * rows.stride + i];
    return room;
}

// Begin to read as many cache lines of rows from `from` on as there are in numbers [begin, end) of
// them, into the second cache, unless there are gaps between them.
HELPER void fetch_rows(const stored_rows *of, int64_t from, int64_t d, int64_t begin, int64_t end)
{
    if (of->data && of->stride != d)
        return;
    const int64_t size = of->data ? (int64_t)sizeof(float) : of->bits / 8;
    const char *rows = of->data ? (const char *)of->data : (const char *)of->codes;
    fetch(rows + (from * d + begin) * size, (end - begin) * size);
}

// The same rows from one of them on.
HELPER stored_rows stored_from(const avl_codes *of, const void *codes, const float *scales,
                               int64_t row, int64_t d)
{
    return (stored_rows){.codes = (const char *)codes + row * d * of->bits / 8,
                         .scales = scales ? scales + row : NULL, .bits = of->bits};
}

// Rows that lie together: `first` is where they begin among all keys of the sequence.
typedef struct {
    stored_rows keys, values;
    float *mass;       // [R, capacity]
    const float *bias; // [S, capacity], or NULL
    int64_t first, rows, capacity;
    int causal;
} place;

HELPER int64_t rows_of(const avl_prompt *prompt) { return prompt->group * prompt->step->rows; }

// Numbers from one new row of a head to the next.
HELPER int64_t stride_of(const avl_step *step)
{
    return step->mutual ? step->heads * step->head_dim : step->head_dim;
}

// How many new keys a sequence has.
HELPER int64_t new_keys(const avl_step *step) { return step->mutual ? step->mutual : step->rows; }

// Where the new keys of a part begin.
HELPER int64_t keys_of(const avl_step *step, int64_t part)
{
    if (!step->mutual)
        return part * step->rows * step->head_dim;
    const int64_t heads = step->heads;
    return (part / heads * step->mutual * heads + part % heads) * step->head_dim;
}

// Where the new query rows of a part begin which has so many heads.
HELPER int64_t start_of(const avl_step *step, int64_t part, int64_t heads)
{
    if (step->mutual) // and each head is a part
        return (part / step->heads * step->rows * step->heads + part % step->heads) * step->head_dim;
    return part * heads * step->rows * step->head_dim;
}

// Where new row `new_row` of a part's head `head` lies behind that.
HELPER int64_t place_of(const avl_step *step, int64_t head, int64_t new_row)
{
    return head * step->rows * step->head_dim + new_row * stride_of(step);
}

HELPER void find_places(const avl_step *step, int64_t part, place places[3])
{
    int64_t sequence = part / step->kv_heads, d = step->head_dim, r = step->weightings;
    int64_t active = step->active_len[sequence], parked = step->parked_len[sequence];
    int64_t a = part * step->active, p = part * step->parked, n = part * step->rows;
    const avl_codes *of = step->codes;
    places[0] = (place){.mass = step->mass_active + a * r, .rows = active,
                        .capacity = step->active};
    places[1] = (place){.mass = step->mass_parked + p * r, .first = active, .rows = parked,
                        .capacity = step->parked};
    places[2] = (place){.mass = step->mass_new + n * r, .first = active + parked,
                        .rows = new_keys(step), .capacity = step->rows, .causal = !step->mutual};
    if (step->bias_active) {
        places[0].bias = step->bias_active + avl_bias_at(step, part);
        places[1].bias = step->bias_parked + sequence * step->rows * step->parked;
        places[2].bias = step->bias_new + sequence * step->rows * step->rows;
    }
    if (!of) {
        const int64_t start = keys_of(step, part), stride = stride_of(step);
        places[0].keys = (stored_rows){step->k_active + a * d, .stride = d};
        places[0].values = (stored_rows){step->v_active + a * d, .stride = d};
        places[1].keys = (stored_rows){step->k_parked + p * d, .stride = d};
        places[1].values = (stored_rows){step->v_parked + p * d, .stride = d};
        places[2].keys = (stored_rows){step->k_new + start, .stride = stride};
        places[2].values = (stored_rows){step->v_new + start, .stride = stride};
        return;
    }
    places[0].keys = stored_from(of, of->k_active, of->k_active_scales, a, d);
    places[0].values = stored_from(of, of->v_active, of->v_active_scales, a, d);
    places[1].keys = stored_from(of, of->k_parked, of->k_parked_scales, p, d);
    places[1].values = stored_from(of, of->v_parked, of->v_parked_scales, p, d);
    places[2].keys = stored_from(of, of->k_new, of->k_new_scales, n, d);
    places[2].values = stored_from(of, of->v_new, of->v_new_scales, n, d);
}

// How many of `keys` keys of a place, from `from` on, a new row's queries see.
HELPER int64_t seen_by(const place *of, int64_t from, int64_t keys, int64_t new_row)
{
    return of->causal ? most(0, least(keys, new_row + 1 - from)) : keys;
}

#endif
