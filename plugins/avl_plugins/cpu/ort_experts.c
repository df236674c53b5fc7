// SparseExperts as a custom op of ONNX Runtime's CPU provider. Rows are put together by expert, so
// that each expert that some row chose is read once, where its weights lie, and no other is.
#include "levels.h"
#include "ort_linear.h"
#include "ort_op.h"

#include <stdlib.h>
#include <string.h>

enum { X, CHOSEN, SHARES, GATE_UP, DOWN, INPUTS };
enum { PARTS = 8, COLUMNS = 16 }; // tasks of an expert; columns of a part are a multiple, but the last

static const int TYPES[] = {ORT_FLOAT, ORT_INT64, ORT_FLOAT, ORT_ANY, ORT_ANY};
static const size_t RANKS[] = {2, 2, 2, 3, 3};

typedef struct {
    avl_multiply_stored *multiply;
    const avl_stacked_kernels *stacked;
    int64_t gate_up_trans, down_trans; // whether outputs come first
} experts_kernel;

// A stack of weights: the first of them, and whether outputs come first.
typedef struct {
    avl_stored first;
    int64_t trans;
} stack;

// A pair is a row with an expert that it chose; pairs of an expert lie together.
typedef struct {
    const experts_kernel *op;
    int64_t rows, size, inner_size, experts, each; // each: experts of a row
    const float *x, *shares;
    const int64_t *chosen;
    float *y;
    stack gate_up, down;
    int64_t hits;      // experts that some row chose
    int64_t *ids;      // [hits]
    int64_t *begins;   // [experts + 1] of hits: where their pairs begin
    int64_t *next;     // [experts] where an expert's next pair goes
    int64_t *places;   // [rows, each] pairs of a row, by ascending expert
    float *counts;     // [pairs] what a pair's result counts
    float *own;        // [pairs, size]
    float *both;       // [pairs, 2 * inner_size]
    float *inner;      // [pairs, inner_size]
    float *found;      // [pairs, size]
} work;

static int64_t bound(int64_t outputs, size_t part)
{
    return part == PARTS ? outputs : outputs * (int64_t)part / PARTS / COLUMNS * COLUMNS;
}

static void multiply(const work *w, const stack *of, int64_t expert, const float *x, int64_t rows,
                     int64_t first, int64_t end, float *y)
{
    avl_stored weight = of->first;
    const int64_t bytes = weight.inputs * weight.outputs * avl_size_of(weight.element);
    weight.data = (const char *)weight.data + expert * bytes;
    if (!of->trans)
        w->op->stacked->turned(&weight, x, rows, first, end, y);
    else if (weight.inputs % AVL_LINEAR_INPUTS)
        w->op->stacked->straight(&weight, x, rows, first, end, y);
    else
        w->op->multiply(&weight, x, rows, first, end, y);
}

static void open_part(void *of, size_t index)
{
    const work *w = of;
    const int64_t hit = (int64_t)(index / PARTS), begin = w->begins[hit], size = w->inner_size;
    const int64_t rows = w->begins[hit + 1] - begin;
    const int64_t first = bound(size, index % PARTS), end = bound(size, index % PARTS + 1);
    const float *x = w->own + begin * w->size;
    float *both = w->both + begin * 2 * size;
    multiply(w, &w->gate_up, w->ids[hit], x, rows, first, end, both);
    multiply(w, &w->gate_up, w->ids[hit], x, rows, size + first, size + end, both);
    w->op->stacked->gate(both, rows, size, first, end, w->inner + begin * size);
}

static void close_part(void *of, size_t index)
{
    const work *w = of;
    const int64_t hit = (int64_t)(index / PARTS), begin = w->begins[hit];
    multiply(w, &w->down, w->ids[hit], w->inner + begin * w->inner_size,
             w->begins[hit + 1] - begin, bound(w->size, index % PARTS),
             bound(w->size, index % PARTS + 1), w->found + begin * w->size);
}

// A row's results, by ascending expert, as transformers adds them.
static void add_row(void *of, size_t row)
{
    const work *w = of;
    float *restrict y = w->y + (int64_t)row * w->size;
    memset(y, 0, (size_t)w->size * sizeof *y);
    for (int64_t i = 0; i < w->each; i++) {
        const int64_t pair = w->places[(int64_t)row * w->each + i];
        const float *restrict found = w->found + pair * w->size, count = w->counts[pair];
        for (int64_t c = 0; c < w->size; c++)
            y[c] += count * found[c];
    }
}

// Puts the pairs of each expert together, and the rows of x with them.
static OrtStatus *sort_pairs(work *w)
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
        memcpy(w->own + pair * w->size, w->x + i / w->each * w->size,
               (size_t)w->size * sizeof(float));
        // Pairs of a row by ascending expert, which is ascending pair: by insertion.
        int64_t *places = w->places + i / w->each * w->each, at = i % w->each;
        for (; at && places[at - 1] > pair; at--)
            places[at] = places[at - 1];
        places[at] = pair;
    }
    return NULL;
}

static OrtStatus *run(OrtKernelContext *context, work *w)
{
    OrtStatus *status = sort_pairs(w);
    const size_t tasks = (size_t)w->hits * PARTS;
    if (!status)
        status = avl_api->KernelContext_ParallelFor(context, open_part, tasks, 0, w);
    if (!status)
        status = avl_api->KernelContext_ParallelFor(context, close_part, tasks, 0, w);
    if (!status && w->rows > 1)
        status = avl_api->KernelContext_ParallelFor(context, add_row, (size_t)w->rows, 0, w);
    else if (!status)
        add_row(w, 0);
    return status;
}

static OrtStatus *run_in_room(OrtKernelContext *context, work *w)
{
    const int64_t pairs = w->rows * w->each, wholes = 3 * w->experts + 1 + pairs;
    const int64_t numbers = pairs * (1 + 2 * w->size + 3 * w->inner_size);
    int64_t *room = malloc((size_t)wholes * sizeof *room + (size_t)numbers * sizeof(float));
    if (!room)
        return avl_failed("expected memory for rows of experts, found none");
    w->ids = room;
    w->begins = w->ids + w->experts;
    w->next = w->begins + w->experts + 1;
    w->places = w->next + w->experts;
    w->counts = (float *)(w->places + pairs);
    w->own = w->counts + pairs;
    w->found = w->own + pairs * w->size;
    w->both = w->found + pairs * w->size;
    w->inner = w->both + pairs * 2 * w->inner_size;
    OrtStatus *status = run(context, w);
    free(room);
    return status;
}

static OrtStatus *read_stack(const OrtKernelContext *context, size_t index, const avl_tensor *given,
                             int64_t trans, stack *to)
{
    int type;
    OrtStatus *status = avl_input_element(context, index, &type);
    if (status)
        return status;
    const int64_t *dims = given[index].dims;
    to->trans = trans;
    to->first = (avl_stored){dims[trans ? 2 : 1], dims[trans ? 1 : 2], AVL_SINGLE, given[index].data};
    if (!avl_element_of(type, &to->first.element))
        return avl_failed("expected experts' weights of float32, float16 or bfloat16");
    return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const experts_kernel *op = kernel;
    avl_tensor given[INPUTS];
    OrtStatus *status = avl_inputs(context, RANKS, INPUTS, given);
    work w = {.op = op};
    if (!status)
        status = read_stack(context, GATE_UP, given, op->gate_up_trans, &w.gate_up);
    if (!status)
        status = read_stack(context, DOWN, given, op->down_trans, &w.down);
    if (status)
        return status;
    w.rows = given[X].dims[0], w.size = given[X].dims[1], w.each = given[CHOSEN].dims[1];
    w.experts = given[GATE_UP].dims[0], w.inner_size = w.down.first.inputs;
    if (given[CHOSEN].dims[0] != w.rows || given[SHARES].dims[0] != w.rows ||
        given[SHARES].dims[1] != w.each || given[DOWN].dims[0] != w.experts || w.gate_up.first.inputs != w.size ||
        w.gate_up.first.outputs != 2 * w.inner_size || w.down.first.outputs != w.size)
        return avl_failed("expected shapes that agree (schema/experts.py)");
    w.x = given[X].data, w.chosen = given[CHOSEN].data, w.shares = given[SHARES].data;
    status = avl_output(context, 0, given[X].dims, 2, &w.y);
    return status || !w.rows ? status : run_in_room(context, &w);
}

static OrtStatus *create(const OrtCustomOp *unused_op, const OrtApi *unused_api,
                         const OrtKernelInfo *info, void **kernel)
{
    (void)unused_op, (void)unused_api;
    experts_kernel *made = malloc(sizeof *made);
    if (!made)
        return avl_failed("expected memory, found none");
    *made = (experts_kernel){avl_best_linears()->multiply, avl_best_stacked(), 0, 0};
    OrtStatus *status =
        avl_api->KernelInfoGetAttribute_int64(info, "gate_up_trans", &made->gate_up_trans);
    if (!status)
        status = avl_api->KernelInfoGetAttribute_int64(info, "down_trans", &made->down_trans);
    if (status)
        free(made);
    else
        *kernel = made;
    return status;
}

const avl_op avl_sparse_experts = {
    AVL_OP(create, compute, free), "SparseExperts", INPUTS, 1, TYPES, NULL,
};
