#include "ort_experts.h"

#include <stdlib.h>
#include <string.h>

enum { PARTS = 8, COLUMNS = 16 }; // tasks of an expert; columns of a part are a multiple, but the last

static int64_t bound(int64_t outputs, size_t part)
{
    return part == PARTS ? outputs : outputs * (int64_t)part / PARTS / COLUMNS * COLUMNS;
}

static void open_part(void *of, size_t index)
{
    const avl_experts *w = of;
    const int64_t hit = (int64_t)(index / PARTS), begin = w->begins[hit], size = w->inner_size;
    const int64_t count = w->begins[hit + 1] - begin;
    const int64_t first = bound(size, index % PARTS), end = bound(size, index % PARTS + 1);
    float *both = w->both + begin * 2 * size;
    w->products->open(w, w->ids[hit], begin, count, first, end, both);
    w->products->open(w, w->ids[hit], begin, count, size + first, size + end, both);
    w->stacked->gate(both, count, size, first, end, w->inner + begin * size);
}

static void close_part(void *of, size_t index)
{
    const avl_experts *w = of;
    const int64_t hit = (int64_t)(index / PARTS), begin = w->begins[hit];
    w->products->close(w, w->ids[hit], begin, w->begins[hit + 1] - begin,
                       bound(w->size, index % PARTS), bound(w->size, index % PARTS + 1),
                       w->found + begin * w->size);
}

// A row's results, by ascending expert, as transformers adds them.
static void add_row(void *of, size_t row)
{
    const avl_experts *w = of;
    float *restrict y = w->y + (int64_t)row * w->size;
    memset(y, 0, (size_t)w->size * sizeof *y);
    for (int64_t i = 0; i < w->each; i++) {
        const int64_t pair = w->places[(int64_t)row * w->each + i];
        const float *restrict found = w->found + pair * w->size, count = w->counts[pair];
        for (int64_t c = 0; c < w->size; c++)
            y[c] += count * found[c];
    }
}

// Puts the pairs of each expert together.
static OrtStatus *sort_pairs(avl_experts *w)
{
    const int64_t pairs = w->rows * w->each;
    memset(w->next, 0, (size_t)w->experts * sizeof *w->next);
    for (int64_t i = 0; i < pairs; i++) {
        if (w->chosen[i] < 0 || w->chosen[i] >= w->experts)
            return avl_failed("expected experts from 0 to one less than there are");
        w->next[w->chosen[i]]++;
    }
    w->begins[0] = 0;
    for (int64_t e = 0; e < w->experts; e++) {
        const int64_t count = w->next[e], begin = w->begins[w->hits];
        w->next[e] = begin;
        if (count) {
            w->ids[w->hits++] = e;
            w->begins[w->hits] = begin + count;
        }
    }
    for (int64_t i = 0; i < pairs; i++) {
        const int64_t pair = w->next[w->chosen[i]]++;
        w->counts[pair] = w->shares[i];
        w->sources[pair] = i / w->each;
        // Pairs of a row by ascending expert, which is ascending pair: by insertion.
        int64_t *places = w->places + i / w->each * w->each, at = i % w->each;
        for (; at && places[at - 1] > pair; at--)
            places[at] = places[at - 1];
        places[at] = pair;
    }
    return NULL;
}

static OrtStatus *run(OrtKernelContext *context, avl_experts *w)
{
    const avl_expert_products *products = w->products;
    OrtStatus *status = sort_pairs(w);
    const size_t tasks = (size_t)w->hits * PARTS;
    if (!status && products->begin)
        status = products->begin(context, w);
    if (!status)
        status = avl_api->KernelContext_ParallelFor(context, open_part, tasks, 0, w);
    if (!status && products->turn)
        status = products->turn(context, w);
    if (!status)
        status = avl_api->KernelContext_ParallelFor(context, close_part, tasks, 0, w);
    if (!status && w->rows > 1)
        status = avl_api->KernelContext_ParallelFor(context, add_row, (size_t)w->rows, 0, w);
    else if (!status)
        add_row(w, 0);
    return status;
}

OrtStatus *avl_run_experts(OrtKernelContext *context, avl_experts *w, size_t room)
{
    const int64_t pairs = w->rows * w->each, wholes = 3 * w->experts + 1 + 2 * pairs;
    const int64_t numbers = (pairs * (1 + w->size + 3 * w->inner_size) + 1) / 2 * 2;
    if (!w->rows)
        return NULL;
    int64_t *memory =
        malloc((size_t)wholes * sizeof *memory + (size_t)numbers * sizeof(float) + room);
    if (!memory)
        return avl_failed("expected memory for rows of experts, found none");
    w->ids = memory;
    w->begins = w->ids + w->experts;
    w->next = w->begins + w->experts + 1;
    w->places = w->next + w->experts;
    w->sources = w->places + pairs;
    w->counts = (float *)(w->sources + pairs);
    w->found = w->counts + pairs;
    w->both = w->found + pairs * w->size;
    w->inner = w->both + pairs * 2 * w->inner_size;
    w->room = w->counts + numbers; // whole numbers of 64 bits may lie there
    OrtStatus *status = run(context, w);
    free(memory);
    return status;
}

OrtStatus *avl_expert_rows(OrtKernelContext *context, const avl_tensor *given, avl_experts *to)
{
    to->rows = given[AVL_X].dims[0], to->each = given[AVL_CHOSEN].dims[1];
    if (given[AVL_X].dims[1] != to->size || given[AVL_CHOSEN].dims[0] != to->rows ||
        given[AVL_SHARES].dims[0] != to->rows || given[AVL_SHARES].dims[1] != to->each)
        return avl_failed("expected shapes that agree (schema/experts.py)");
    to->x = given[AVL_X].data, to->chosen = given[AVL_CHOSEN].data;
    to->shares = given[AVL_SHARES].data;
    return avl_output(context, 0, given[AVL_X].dims, 2, &to->y);
}
