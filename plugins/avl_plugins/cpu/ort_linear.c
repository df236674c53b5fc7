// Linear and its like as custom ops of ONNX Runtime's CPU provider: for one to three weights that are
// multiplied with the same x.
#include "ort_linear.h"

#include "levels.h"
#include "linear_amx.h"
#include "ort_op.h"
#include "processor.h"

#include <stdlib.h>

enum { MOST_WEIGHTS = 3, TASKS = 16, ALIGNMENT = 64 };

// Weights of one op, which lie where ONNX Runtime has them: in the mapped file of a checkpoint, if
// they do there.
typedef struct {
    const avl_linear_op *op;
    avl_multiply_stored *multiply;
    avl_finish *finish;
    int64_t amx_rows; // from how many rows of x on AMX multiplies; 0: never
    size_t count;
    avl_stored weights[MOST_WEIGHTS];
} stored_weights;

typedef struct {
    const stored_weights *stored;
    const float *x;
    int64_t rows;
    avl_amx_rows amx_x; // for AMX, if it has values
    float *y[MOST_WEIGHTS];
    avl_epilogue after[MOST_WEIGHTS];
} product;

// What tasks have shares of: outputs, or on AMX tiles of them.
static int64_t units_of(const product *p, const avl_stored *weight)
{
    return p->amx_x.values ? avl_amx_tiles(weight->outputs) : weight->outputs;
}

// Adds what follows the products to columns of y [rows, outputs].
static void finish(const product *p, size_t i, float *y, int64_t rows, int64_t first, int64_t end)
{
    const int64_t outputs = p->stored->weights[i].outputs;
    if (p->after[i].bias)
        p->stored->finish(&p->after[i], y, rows, outputs, first, end < outputs ? end : outputs);
}

// Units [first, end) of a weight, on AMX for the block of rows that starts with `row`.
static void multiply_units(const product *p, size_t i, int64_t first, int64_t end, int64_t row)
{
    const avl_stored *weight = &p->stored->weights[i];
    if (!p->amx_x.values) {
        p->stored->multiply(weight, p->x, p->rows, first, end, p->y[i]);
        finish(p, i, p->y[i], p->rows, first, end);
        return;
    }
    const avl_amx_rows x = avl_amx_part(&p->amx_x, row);
    float *y = p->y[i] + row * weight->outputs;
    for (int64_t tile = first; tile < end; tile++) {
        avl_amx->multiply_stored(weight, &x, tile, y);
        finish(p, i, y, x.rows, tile * AVL_AMX_TILE, (tile + 1) * AVL_AMX_TILE);
    }
}

// A part of all weights' units, those of the first weight first; of a block of rows on AMX.
static void multiply_share(void *of, size_t index)
{
    const product *p = of;
    const int64_t row = p->amx_x.values ? (int64_t)(index / TASKS) * avl_amx_block(p->rows) : 0;
    index %= TASKS;
    int64_t units = 0;
    for (size_t i = 0; i < p->stored->count; i++)
        units += units_of(p, &p->stored->weights[i]);
    int64_t first = units * (int64_t)index / TASKS, end = units * ((int64_t)index + 1) / TASKS;
    if (p->amx_x.values)
        avl_amx->begin();
    for (size_t i = 0; i < p->stored->count && first < end; i++) {
        int64_t own = units_of(p, &p->stored->weights[i]), last = end < own ? end : own;
        if (first < last) {
            multiply_units(p, i, first, last, row);
            first = last;
        }
        first -= own;
        end -= own;
    }
    if (p->amx_x.values)
        avl_amx->end();
}

static void round_group(void *of, size_t index)
{
    const product *p = of;
    avl_amx->round(p->x, &p->amx_x, (int64_t)index);
}

static OrtStatus *multiply(OrtKernelContext *context, product *p)
{
    const int64_t blocks = p->amx_x.values ? avl_amx_blocks(p->rows) : 1;
    return avl_api->KernelContext_ParallelFor(context, multiply_share, (size_t)blocks * TASKS, 0, p);
}

static OrtStatus *multiply_on_amx(OrtKernelContext *context, product *p)
{
    const int64_t inputs = p->stored->weights->inputs;
    size_t values = (size_t)avl_amx_values(p->rows, inputs);
    p->amx_x = (avl_amx_rows){p->rows, inputs, aligned_alloc(ALIGNMENT, values * sizeof(uint16_t))};
    if (!p->amx_x.values)
        return avl_failed("expected memory for rounded rows, found none");
    size_t groups = (size_t)avl_amx_groups(p->rows);
    OrtStatus *status =
        avl_api->KernelContext_ParallelFor(context, round_group, groups, 0, p);
    if (!status)
        status = multiply(context, p);
    free(p->amx_x.values);
    return status;
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
        if (stored->op->has_bias &&
            (status = avl_bias(context, stored->op, i, stored->weights[i].outputs, &p.after[i])))
            return status;
    }
    if (!p.rows)
        return NULL;
    if (stored->amx_rows && p.rows >= stored->amx_rows)
        return multiply_on_amx(context, &p);
    return multiply(context, &p);
}

int avl_element_of(int type, avl_element *element)
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
    if (!avl_element_of(from.type, &weight->element) || from.rank != 2 || !from.dims[1] ||
        from.dims[1] % AVL_LINEAR_INPUTS)
        return avl_failed("expected float32, float16 or bfloat16 weights [outputs, inputs] with a "
                          "multiple of 16 inputs");
    weight->outputs = from.dims[0];
    weight->inputs = from.dims[1];
    weight->data = from.data;
    return NULL;
}

static OrtStatus *read_weights(const OrtKernelInfo *info, stored_weights *stored)
{
    const avl_linear_op *op = stored->op;
    const size_t tensors = 1 + (size_t)op->has_bias; // of a weight
    for (; stored->count < op->op.outputs; stored->count++) {
        avl_stored *weight = &stored->weights[stored->count];
        OrtStatus *status = avl_read_stored(info, 1 + stored->count * tensors, weight);
        if (status)
            return status;
        if (weight->inputs != stored->weights->inputs)
            return avl_failed("expected weights with the same inputs");
    }
    return NULL;
}

static OrtStatus *make(const OrtCustomOp *op, const OrtKernelInfo *info, int64_t amx_rows, void **kernel)
{
    stored_weights *stored = calloc(1, sizeof *stored);
    if (!stored)
        return avl_failed("expected memory, found none");
    stored->op = (const avl_linear_op *)op;
    stored->multiply = avl_best_linears()->multiply;
    stored->finish = avl_best_finish();
    stored->amx_rows = amx_rows;
    OrtStatus *status = read_weights(info, stored);
    if (status)
        free(stored);
    else
        *kernel = stored;
    return status;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused_api, const OrtKernelInfo *info,
                         void **kernel)
{
    (void)unused_api;
    return make(op, info, 0, kernel);
}

static OrtStatus *create_on_tiles(const OrtCustomOp *op, const OrtApi *unused_api,
                                  const OrtKernelInfo *info, void **kernel)
{
    (void)unused_api;
    const int has_amx = avl_amx && avl_has_amx();
    return make(op, info, has_amx ? AVL_AMX_LEAST_ROWS : 0, kernel);
}

static void destroy(void *kernel) { free(kernel); }

static const int TYPES[] = {ORT_FLOAT, ORT_ANY, ORT_ANY, ORT_ANY};
static const int TYPES_WITH_BIAS[] = {ORT_FLOAT, ORT_ANY,   ORT_FLOAT, ORT_ANY,
                                      ORT_FLOAT, ORT_ANY,   ORT_FLOAT};

#define LINEAR(CREATE, NAME, WEIGHTS)                                                              \
    {{AVL_OP(CREATE, compute, destroy), NAME, 1 + (WEIGHTS), WEIGHTS, TYPES, NULL}, 0, AVL_IDENTITY}
#define FINISHED(CREATE, NAME, WEIGHTS, ACTIVATION)                                                \
    {{AVL_OP(CREATE, compute, destroy), NAME, 1 + 2 * (WEIGHTS), WEIGHTS, TYPES_WITH_BIAS, NULL},  \
     1,                                                                                            \
     ACTIVATION}
#define LINEARS(CREATE)                                                                            \
    {LINEAR(CREATE, "Linear", 1),                                                                  \
     LINEAR(CREATE, "Linear2", 2),                                                                 \
     LINEAR(CREATE, "Linear3", 3),                                                                 \
     FINISHED(CREATE, "LinearAddBias", 1, AVL_IDENTITY),                                           \
     FINISHED(CREATE, "Linear2AddBias", 2, AVL_IDENTITY),                                          \
     FINISHED(CREATE, "Linear3AddBias", 3, AVL_IDENTITY),                                          \
     FINISHED(CREATE, "LinearAddBiasGelu", 1, AVL_GELU),                                           \
     FINISHED(CREATE, "LinearAddBiasTanhGelu", 1, AVL_TANH_GELU),                                  \
     FINISHED(CREATE, "LinearAddBiasQuickGelu", 1, AVL_QUICK_GELU)}

const avl_linear_op avl_plain_linears[AVL_PLAIN_LINEARS] = LINEARS(create);
const avl_linear_op avl_plain_linears_on_tiles[AVL_PLAIN_LINEARS] = LINEARS(create_on_tiles);
