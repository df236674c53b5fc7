// Linear and its like as custom ops of ONNX Runtime's CPU provider: for one to three weights that are
// multiplied with the same x.
#include "ort_linear.h"

#include "levels.h"
#include "ort_op.h"

#include <stdlib.h>

enum { MOST_WEIGHTS = 3, TASKS = 16 };

// Weights of one op, which lie where ONNX Runtime has them: in the mapped file of a checkpoint, if
// they do there.
typedef struct {
    avl_multiply_stored *multiply;
    size_t count;
    avl_stored weights[MOST_WEIGHTS];
} stored_weights;

typedef struct {
    const stored_weights *stored;
    const float *x;
    int64_t rows;
    float *y[MOST_WEIGHTS];
} product;

// A part of all weights' outputs, those of the first weight first.
static void multiply_share(void *of, size_t index)
{
    const product *p = of;
    int64_t outputs = 0;
    for (size_t i = 0; i < p->stored->count; i++)
        outputs += p->stored->weights[i].outputs;
    int64_t first = outputs * (int64_t)index / TASKS, end = outputs * ((int64_t)index + 1) / TASKS;
    for (size_t i = 0; i < p->stored->count && first < end; i++) {
        const avl_stored *weight = &p->stored->weights[i];
        int64_t last = end < weight->outputs ? end : weight->outputs;
        if (first < last) {
            p->stored->multiply(weight, p->x, p->rows, first, last, p->y[i]);
            first = last;
        }
        first -= weight->outputs;
        end -= weight->outputs;
    }
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const stored_weights *stored = kernel;
    avl_tensor x;
    OrtStatus *status = avl_input(context, 0, &x);
    if (status)
        return status;
    if (x.rank != 2 || x.dims[1] != stored->weights->inputs)
        return avl_failed("expected x [rows, inputs] with the weight's inputs");
    product p = {.stored = stored, .x = x.data, .rows = x.dims[0]};
    for (size_t i = 0; i < stored->count; i++) {
        const int64_t dims[2] = {x.dims[0], stored->weights[i].outputs};
        if ((status = avl_output(context, i, dims, 2, &p.y[i])))
            return status;
    }
    return p.rows ? avl_api->KernelContext_ParallelFor(context, multiply_share, TASKS, 0, &p) : NULL;
}

// Whether there is one for a type.
static int element_of(int type, avl_element *element)
{
    *element = type == ORT_HALF ? AVL_HALF : type == ORT_BFLOAT ? AVL_BFLOAT : AVL_SINGLE;
    return *element != AVL_SINGLE || type == ORT_FLOAT;
}

OrtStatus *avl_read_stored(const OrtKernelInfo *info, size_t index, avl_stored *weight)
{
    avl_tensor from;
    OrtStatus *status = avl_constant(info, index, &from);
    if (status)
        return status;
    if (!element_of(from.type, &weight->element) || from.rank != 2 || !from.dims[1] ||
        from.dims[1] % AVL_LINEAR_INPUTS)
        return avl_failed("expected float32, float16 or bfloat16 weights [outputs, inputs] with a "
                          "multiple of 16 inputs");
    weight->outputs = from.dims[0];
    weight->inputs = from.dims[1];
    weight->data = from.data;
    return NULL;
}

static OrtStatus *read_weights(const avl_op *op, const OrtKernelInfo *info, stored_weights *stored)
{
    for (; stored->count < op->outputs; stored->count++) {
        avl_stored *weight = &stored->weights[stored->count];
        OrtStatus *status = avl_read_stored(info, 1 + stored->count, weight);
        if (status)
            return status;
        if (weight->inputs != stored->weights->inputs)
            return avl_failed("expected weights with the same inputs");
    }
    return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused_api, const OrtKernelInfo *info,
                         void **kernel)
{
    (void)unused_api;
    stored_weights *stored = calloc(1, sizeof *stored);
    if (!stored)
        return avl_failed("expected memory, found none");
    stored->multiply = avl_best_linears()->multiply;
    OrtStatus *status = read_weights((const avl_op *)op, info, stored);
    if (status)
        free(stored);
    else
        *kernel = stored;
    return status;
}

static void destroy(void *kernel) { free(kernel); }

static const int TYPES[] = {ORT_FLOAT, ORT_ANY, ORT_ANY, ORT_ANY};

#define LINEAR(NAME, WEIGHTS)                                                                      \
    {AVL_OP(create, compute, destroy), NAME, 1 + (WEIGHTS), WEIGHTS, TYPES}

const avl_op avl_plain_linears[AVL_PLAIN_LINEARS] = {
    LINEAR("Linear", 1),
    LINEAR("Linear2", 2),
    LINEAR("Linear3", 3),
};
