// SparseExpertsInt4 and SparseExpertsInt8 as custom ops of ONNX Runtime's CPU provider: experts'
// weights are codes, and what they are multiplied with is rounded to 8 bits.
#include "ort_experts.h"

#include <stdlib.h>

enum { GATE_UP_SCALES = AVL_DOWN + 1, DOWN_SCALES, INPUTS };
enum { ROWS_OF_A_TASK = 16 };

static const int INT4_TYPES[INPUTS] = {ORT_FLOAT, ORT_INT64, ORT_FLOAT, ORT_UINT8,
                                       ORT_UINT8, ORT_FLOAT, ORT_FLOAT};
static const int INT8_TYPES[INPUTS] = {ORT_FLOAT, ORT_INT64, ORT_FLOAT, ORT_INT8,
                                       ORT_INT8,  ORT_FLOAT, ORT_FLOAT};
static const size_t RANKS[INPUTS] = {2, 2, 2, 3, 3, 3, 3};

typedef struct {
    const avl_quantized_kernels *rounding;
    const avl_coded_kernels *with;
    const avl_stacked_kernels *stacked;
    int64_t bits;
} coded_kernel;

// A stack of weights, the first of them, and what it is multiplied with.
typedef struct {
    avl_coded first;
    avl_coded_rows x;
    int64_t rows; // of x
} stack;

typedef struct {
    const coded_kernel *op;
    stack gate_up, down;
    int64_t *pairs; // numbers of all, ascending
} weights;

// Rows that are rounded for a stack.
typedef struct {
    const coded_kernel *op;
    const stack *of;
    const float *from;
} rows_of;

static void round_rows(void *of, size_t index)
{
    const rows_of *all = of;
    const avl_coded *weight = &all->of->first;
    const avl_packed form = {.inputs = weight->inputs, .outputs = weight->outputs,
                             .span = weight->span, .bits = weight->bits};
    const int64_t first = (int64_t)index * ROWS_OF_A_TASK, end = first + ROWS_OF_A_TASK;
    const int64_t spans = weight->inputs / weight->span;
    const avl_coded_rows *x = &all->of->x;
    for (int64_t row = first; row < end && row < all->of->rows; row++) {
        int8_t *codes = x->codes + row * weight->inputs;
        const avl_rounded one = {1, codes, x->scales + row * spans, x->sums + row * spans};
        all->op->rounding->round(&form, all->from + row * weight->inputs, &one, 0);
        all->op->with->order(weight, codes);
    }
}

static OrtStatus *round_all(OrtKernelContext *context, const weights *w, const stack *of,
                            const float *from)
{
    rows_of all = {w->op, of, from};
    const int64_t tasks = (of->rows + ROWS_OF_A_TASK - 1) / ROWS_OF_A_TASK;
    if (tasks > 1)
        return avl_api->KernelContext_ParallelFor(context, round_rows, (size_t)tasks, 0, &all);
    round_rows(&all, 0); // so few rows that waking other threads would take longer
    return NULL;
}

static size_t bytes_of(const stack *of, int64_t rows)
{
    const size_t codes = (size_t)(rows * of->first.inputs);
    return codes + codes / (size_t)of->first.span * (sizeof(float) + sizeof(int32_t));
}

// Memory of `bytes_of` from `at` on; returns what is behind it.
static char *lay_out(stack *of, int64_t rows, char *at)
{
    const int64_t spans = rows * of->first.inputs / of->first.span;
    of->rows = rows;
    of->x.scales = (float *)at;
    of->x.sums = (int32_t *)(of->x.scales + spans);
    of->x.codes = (int8_t *)(of->x.sums + spans);
    return at + bytes_of(of, rows);
}

static OrtStatus *begin(OrtKernelContext *context, avl_experts *all)
{
    weights *w = (weights *)all->op;
    const int64_t pairs = all->rows * all->each;
    w->pairs = all->room;
    lay_out(&w->down, pairs, lay_out(&w->gate_up, all->rows, (char *)(w->pairs + pairs)));
    for (int64_t pair = 0; pair < pairs; pair++)
        w->pairs[pair] = pair;
    return round_all(context, w, &w->gate_up, all->x);
}

static OrtStatus *turn(OrtKernelContext *context, avl_experts *all)
{
    const weights *w = all->op;
    return round_all(context, w, &w->down, all->inner);
}

static void multiply(const weights *w, const stack *of, int64_t expert, const int64_t *rows,
                     int64_t count, int64_t first, int64_t end, float *y)
{
    avl_coded weight = of->first;
    const int64_t numbers = weight.inputs * weight.outputs;
    weight.codes += expert * numbers * weight.bits / 8;
    weight.scales += expert * (numbers / weight.block);
    w->op->with->multiply(&weight, &of->x, rows, count, first, end, y);
}

static void open(const avl_experts *all, int64_t expert, int64_t pair, int64_t count, int64_t first,
                 int64_t end, float *y)
{
    const weights *w = all->op;
    multiply(w, &w->gate_up, expert, all->sources + pair, count, first, end, y);
}

static void close(const avl_experts *all, int64_t expert, int64_t pair, int64_t count, int64_t first,
                  int64_t end, float *y)
{
    const weights *w = all->op;
    multiply(w, &w->down, expert, w->pairs + pair, count, first, end, y);
}

static const avl_expert_products PRODUCTS = {begin, turn, open, close};

static OrtStatus *read_stack(const avl_tensor *codes, const avl_tensor *scales, int64_t experts,
                             int64_t bits, stack *to)
{
    const int64_t inputs = codes->dims[2] * 8 / bits, outputs = codes->dims[1];
    const int64_t blocks = scales->dims[2];
    if (codes->dims[0] != experts || scales->dims[0] != experts || scales->dims[1] != outputs)
        return avl_failed("expected shapes that agree (schema/experts.py)");
    const int64_t block = blocks && inputs % blocks == 0 ? inputs / blocks : 0;
    const int64_t span = avl_span_of(block);
    if (!span)
        return avl_failed("expected blocks of a multiple of 32 inputs");
    to->first = (avl_coded){inputs, outputs, block, span, bits, codes->data, scales->data};
    return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const coded_kernel *op = kernel;
    avl_tensor given[INPUTS];
    OrtStatus *status = avl_inputs(context, RANKS, INPUTS, given);
    if (status)
        return status;
    weights of = {.op = op};
    avl_experts w = {.products = &PRODUCTS, .op = &of, .stacked = op->stacked,
                     .experts = given[AVL_GATE_UP].dims[0]};
    status = read_stack(&given[AVL_GATE_UP], &given[GATE_UP_SCALES], w.experts, op->bits, &of.gate_up);
    if (!status)
        status = read_stack(&given[AVL_DOWN], &given[DOWN_SCALES], w.experts, op->bits, &of.down);
    if (status)
        return status;
    const avl_coded *gate_up = &of.gate_up.first, *down = &of.down.first;
    w.size = down->outputs, w.inner_size = down->inputs;
    if (gate_up->inputs != w.size || gate_up->outputs != 2 * w.inner_size)
        return avl_failed("expected shapes that agree (schema/experts.py)");
    if ((status = avl_expert_rows(context, given, &w)))
        return status;
    const int64_t pairs = w.rows * w.each;
    return avl_run_experts(context, &w, bytes_of(&of.gate_up, w.rows) + bytes_of(&of.down, pairs) +
                                            (size_t)pairs * sizeof *of.pairs);
}

static OrtStatus *create(int64_t bits, void **kernel)
{
    coded_kernel *made = malloc(sizeof *made);
    if (!made)
        return avl_failed("expected memory, found none");
    *made = (coded_kernel){avl_best_quantized(), avl_best_coded(), avl_best_stacked(), bits};
    *kernel = made;
    return NULL;
}

static OrtStatus *create_int4(const OrtCustomOp *unused_op, const OrtApi *unused_api,
                              const OrtKernelInfo *unused_info, void **kernel)
{
    (void)unused_op, (void)unused_api, (void)unused_info;
    return create(4, kernel);
}

static OrtStatus *create_int8(const OrtCustomOp *unused_op, const OrtApi *unused_api,
                              const OrtKernelInfo *unused_info, void **kernel)
{
    (void)unused_op, (void)unused_api, (void)unused_info;
    return create(8, kernel);
}

const avl_op avl_coded_experts[AVL_CODED_EXPERTS] = {
    {AVL_OP(create_int4, compute, free), "SparseExpertsInt4", INPUTS, 1, INT4_TYPES, NULL, 0},
    {AVL_OP(create_int8, compute, free), "SparseExpertsInt8", INPUTS, 1, INT8_TYPES, NULL, 0},
};
