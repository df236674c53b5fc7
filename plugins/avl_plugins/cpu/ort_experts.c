// SparseExperts as a custom op of ONNX Runtime's CPU provider: experts' weights as they are stored.
#include "ort_experts.h"

#include "ort_linear.h"

#include <stdlib.h>
#include <string.h>

enum { INPUTS = AVL_DOWN + 1 };

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

typedef struct {
    const experts_kernel *op;
    stack gate_up, down;
} weights;

static void multiply(const avl_experts *w, const stack *of, int64_t expert, const float *x,
                     int64_t rows, int64_t first, int64_t end, float *y)
{
    avl_stored weight = of->first;
    const int64_t bytes = weight.inputs * weight.outputs * avl_size_of(weight.element);
    weight.data = (const char *)weight.data + expert * bytes;
    if (!of->trans)
        w->stacked->turned(&weight, x, rows, first, end, y);
    else if (weight.inputs % AVL_LINEAR_INPUTS)
        w->stacked->straight(&weight, x, rows, first, end, y);
    else
        ((const weights *)w->op)->op->multiply(&weight, x, rows, first, end, y);
}

// Rows of x lie side by side as pairs do.
static OrtStatus *begin(OrtKernelContext *unused, avl_experts *w)
{
    (void)unused;
    float *own = w->room;
    for (int64_t pair = 0; pair < w->rows * w->each; pair++)
        memcpy(own + pair * w->size, w->x + w->sources[pair] * w->size,
               (size_t)w->size * sizeof *own);
    return NULL;
}

static void open(const avl_experts *w, int64_t expert, int64_t pair, int64_t count, int64_t first,
                 int64_t end, float *y)
{
    multiply(w, &((const weights *)w->op)->gate_up, expert, (const float *)w->room + pair * w->size,
             count, first, end, y);
}

static void close(const avl_experts *w, int64_t expert, int64_t pair, int64_t count, int64_t first,
                  int64_t end, float *y)
{
    multiply(w, &((const weights *)w->op)->down, expert, w->inner + pair * w->inner_size, count, first,
             end, y);
}

static const avl_expert_products PRODUCTS = {begin, NULL, open, close};

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
    weights of = {.op = op};
    if (!status)
        status = read_stack(context, AVL_GATE_UP, given, op->gate_up_trans, &of.gate_up);
    if (!status)
        status = read_stack(context, AVL_DOWN, given, op->down_trans, &of.down);
    if (status)
        return status;
    const avl_stored *gate_up = &of.gate_up.first, *down = &of.down.first;
    avl_experts w = {.products = &PRODUCTS, .op = &of, .stacked = op->stacked,
                     .size = down->outputs, .inner_size = down->inputs,
                     .experts = given[AVL_GATE_UP].dims[0]};
    if (given[AVL_DOWN].dims[0] != w.experts || gate_up->inputs != w.size ||
        gate_up->outputs != 2 * w.inner_size)
        return avl_failed("expected shapes that agree (schema/experts.py)");
    status = avl_expert_rows(context, given, &w);
    return status ? status
                  : avl_run_experts(context, &w, (size_t)(w.rows * w.each * w.size) * sizeof *w.y);
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
