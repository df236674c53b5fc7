// How attention of a prompt is cut into tasks. Only sizes decide it, never the threads, so that
// results do not depend on them.
#include "prompt.h"

#include <stdlib.h>

// Tasks that keep cores busy: of other tiles' so large ones no fewer.
#define TILED_TASKS 16

// Rows so few that reading keys takes longer than computing with them: several tasks share the
// keys, if parts alone do not keep so many cores busy.
#define FEW_ROWS 64
#define BUSY 64
#define SPAN 1024

#define WORKERS 64
#define KEYS 64 // of a packed block, and
#define ROWS 6  // of a tile (prompt_tile.h)
#define LINE 64 // bytes
#define SIZE (int64_t)sizeof(float)

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t in_all(int64_t count, int64_t each) { return (count + each - 1) / each; }
static int64_t whole(int64_t count, int64_t each) { return in_all(count, each) * each; }

// The spans of `keys` keys for each of so many tasks, and how many keys are in one.
static int64_t spans_of(int64_t keys, int64_t tasks, int64_t *span)
{
    int64_t wanted = most(1, least(in_all(keys, SPAN), in_all(BUSY, tasks)));
    *span = whole(in_all(keys, wanted), KEYS);
    return in_all(keys, *span);
}

static int has_weight(const avl_step *step, int64_t sequence, int64_t row)
{
    const float *weights = step->row_weights + sequence * step->weightings * step->rows;
    for (int64_t r = 0; r < step->weightings; r++)
        if (weights[r * step->rows + row] != 0.0f)
            return 1;
    return 0;
}

// Rows without a weight add nothing to a mass, and are most of them.
static void find_wanted(const avl_step *step, avl_prompt *prompt)
{
    for (int64_t b = 0; b < step->batch; b++) {
        int64_t *count = prompt->wanted + b, *rows = prompt->wanted_rows + b * step->rows;
        *count = 0;
        for (int64_t s = 0; s < step->rows; s++)
            if (has_weight(step, b, s))
                rows[(*count)++] = s;
    }
}

static void cut(const avl_prompt_tiles *tiles, int64_t keys, avl_prompt *prompt)
{
    const int64_t parts = prompt->parts, rows = prompt->group * prompt->step->rows;
    const int64_t d = prompt->step->head_dim;
    prompt->spans = 1;
    prompt->span = keys;
    int64_t blocks = in_all(rows, AVL_PROMPT_BLOCK);
    if (tiles)
        blocks = most(in_all(rows, tiles->block), least(blocks, in_all(TILED_TASKS, parts)));
    prompt->block = whole(in_all(rows, blocks), tiles ? tiles->rows : ROWS);
    prompt->blocks = in_all(rows, prompt->block);
    if (!tiles && rows <= FEW_ROWS && !prompt->step->mutual) // whose rows do not lie as merged ones
        prompt->spans = spans_of(keys, parts, &prompt->span);
    prompt->mass_spans = spans_of(keys, parts, &prompt->mass_span);
    prompt->workers = least(WORKERS, most(avl_prompt_tasks(prompt), parts * prompt->mass_spans));
    prompt->room = 3 * d * KEYS; // prompt.c's `room`
    if (tiles)
        prompt->room = most(prompt->room, tiles->room(prompt->block, d));
}

int avl_plan_prompt(const avl_step *step, const avl_prompt_tiles *tiles, avl_prompt *prompt)
{
    const int64_t group = step->heads / step->kv_heads, parts = step->batch * step->kv_heads;
    const int64_t rows = group * step->rows, d = step->head_dim;
    int64_t keys = 0;
    for (int64_t b = 0; b < step->batch; b++)
        keys = most(keys, step->active_len[b] + step->parked_len[b] +
                              (step->mutual ? step->mutual : step->rows));
    *prompt = (avl_prompt){.step = step, .group = group, .parts = parts, .keys = keys};
    cut(tiles, keys, prompt);

    const int64_t merged = prompt->spans > 1 ? parts * prompt->spans * rows : 0;
    const int64_t found = tiles ? parts * prompt->mass_spans * rows : 0;
    const int64_t rooms = prompt->workers * prompt->room, results = most(merged, found);
    // Keys of few rows take longer to read again than their scores take to keep.
    const int64_t kept = prompt->spans > 1 && step->weightings ? parts * rows * keys : 0;
    const int64_t floats = rooms + 2 * parts * rows + merged * d + 2 * results + kept;
    const int64_t integers = step->batch * (step->rows + 1) * (int64_t)sizeof(int64_t);
    prompt->memory = malloc((size_t)(LINE + floats * SIZE + integers));
    if (!prompt->memory)
        return 0;
    prompt->rooms = (float *)(((uintptr_t)prompt->memory + LINE - 1) / LINE * LINE);
    prompt->wanted = (int64_t *)(prompt->rooms + rooms);
    prompt->wanted_rows = prompt->wanted + step->batch;
    prompt->tops = (float *)(prompt->wanted_rows + step->batch * step->rows);
    prompt->sums = prompt->tops + parts * rows;
    prompt->span_out = prompt->sums + parts * rows;
    prompt->span_tops = prompt->span_out + merged * d;
    prompt->span_sums = prompt->span_tops + results;
    prompt->scores = kept ? prompt->span_sums + results : NULL;
    find_wanted(step, prompt);
    return 1;
}
