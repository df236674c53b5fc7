// Linear and its like as custom ops of ONNX Runtime's CPU provider: for one to three weights that are
// multiplied with the same x.
#include "ort_linear.h"

#include "levels.h"
#include "linear_amx.h"
#include "ort_op.h"
#include "processor.h"

#include <stdlib.h>

enum { MOST_WEIGHTS = 3, TASKS = 16, ALIGNMENT = 64 };
enum { FEW = 16, GATED = AVL_AMX_TILE };

// Weights of one op, which lie where ONNX Runtime has them: in the mapped file of a checkpoint, if
// they do there.
typedef struct {
    const avl_linear_op *op;
    avl_multiply_stored *multiply;
    const avl_epilogues *epilogues;
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
    _Atomic int lacks_memory; // some task found none
} product;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// What tasks have shares of: outputs, or on AMX tiles of them.
static int64_t units_of(const product *p, const avl_stored *weight)
{
    return p->amx_x.values ? avl_amx_tiles(weight->outputs) : weight->outputs;
}

// Of a weight that another gates, columns at a time: of few rows all that a task may have, as memory is
// fastest in its own order, of more as many as stay in a cache.
static int64_t gated_columns(const product *p)
{
    const int64_t all = p->stored->weights->outputs / TASKS + 1;
    return p->amx_x.values || p->rows > FEW || all < GATED ? GATED : all;
}

// Columns [first, end) of products with a weight, of which on AMX there is a tile.
static void multiply_columns(const product *p, const avl_stored *weight, const avl_amx_rows *x,
                             int64_t first, int64_t end, float *y)
{
    if (x->values)
        avl_amx->multiply_stored(weight, x, first / AVL_AMX_TILE, y);
    else
        p->stored->multiply(weight, p->x, p->rows, first, end, y);
}

// What follows products of columns [first, end) of y [rows, outputs], and those of a second weight.
static void finish(const product *p, size_t i, const avl_amx_rows *x, float *y, int64_t first,
                   int64_t end, float *gated)
{
    const stored_weights *stored = p->stored;
    const avl_stored *weight = &stored->weights[i];
    const int64_t rows = x->values ? x->rows : p->rows, outputs = weight->outputs;
    if (gated) {
        avl_stored part = weight[1]; // whose products lie side by side
        part.outputs = end - first;
        part.data = (const char *)part.data + first * part.inputs * avl_size_of(part.element);
        multiply_columns(p, &part, x, 0, part.outputs, gated);
        stored->epilogues->gate(stored->op->activation, y, rows, outputs, first, end, gated);
    } else if (p->after[i].bias) {
        stored->epilogues->finish(&p->after[i], y, rows, outputs, first, end);
    }
}

// Units [first, end) of a weight, on AMX for the block of rows that starts with `row`. `gated`: where
// the second weight's products may lie.
static void multiply_units(const product *p, size_t i, int64_t first, int64_t end, int64_t row,
                           float *gated)
{
    const avl_stored *weight = &p->stored->weights[i];
    const int has_amx = p->amx_x.values != NULL;
    const avl_amx_rows x = has_amx ? avl_amx_part(&p->amx_x, row) : (avl_amx_rows){0};
    float *y = p->y[i] + row * weight->outputs;
    const int64_t unit = has_amx ? AVL_AMX_TILE : 1;
    const int64_t step = has_amx ? AVL_AMX_TILE : gated ? gated_columns(p) : end - first;
    const int64_t bound = least(end * unit, weight->outputs);
    for (int64_t column = first * unit; column < bound; column += step) {
        const int64_t last = least(column + step, bound);
        multiply_columns(p, weight, &x, column, last, y);
        finish(p, i, &x, y, column, last, gated);
    }
}

// A part of all weights' units, those of the first weight first; of a block of rows on AMX. A weight
// that is gated goes with the first.
static void multiply_share(void *of, size_t index)
{
    product *p = of;
    const stored_weights *stored = p->stored;
    const int has_amx = p->amx_x.values != NULL;
    const int64_t block = has_amx ? avl_amx_block(p->rows) : p->rows;
    const int64_t row = has_amx ? (int64_t)(index / TASKS) * block : 0;
    const size_t count = stored->op->is_gated ? 1 : stored->count;
    index %= TASKS;
    float *gated = NULL;
    if (stored->op->is_gated) {
        gated = malloc((size_t)(block * gated_columns(p)) * sizeof *gated);
        if (!gated) {
            p->lacks_memory = 1;
            return;
        }
    }
    int64_t units = 0;
    for (size_t i = 0; i < count; i++)
        units += units_of(p, &stored->weights[i]);
    int64_t first = units * (int64_t)index / TASKS, end = units * ((int64_t)index + 1) / TASKS;
    if (has_amx)
        avl_amx->begin();
    for (size_t i = 0; i < count && first < end; i++) {
        int64_t own = units_of(p, &stored->weights[i]), last = least(end, own);
        if (first < last) {
            multiply_units(p, i, first, last, row, gated);
            first = last;
        }
        first -= own;
        end -= own;
    }
    if (has_amx)
        avl_amx->end();
    free(gated);
}

static void round_group(void *of, size_t index)
{
    const product *p = of;
    avl_amx->round(p->x, &p->amx_x, (int64_t)index);
}

static OrtStatus *no_memory(void) { return avl_failed("expected memory for rows, found none"); }

static OrtStatus *multiply(OrtKernelContext *context, product *p)
{
    const int64_t blocks = p->amx_x.values ? avl_amx_blocks(p->rows) : 1;
    OrtStatus *status = avl_api->KernelContext_ParallelFor(context, multiply_share,
                                                           (size_t)blocks * TASKS, 0, p);
    return status || !p->lacks_memory ? status : no_memory();
}

static OrtStatus *multiply_on_amx(OrtKernelContext *context, product *p)
{
    const int64_t inputs = p->stored->weights->inputs;
    size_t values = (size_t)avl_amx_values(p->rows, inputs);
    p->amx_x = (avl_amx_rows){p->rows, inputs, aligned_alloc(ALIGNMENT, values * sizeof(uint16_t))};
    if (!p->amx_x.values)
        return no_memory();
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
    for (size_t i = 0; i < stored->op->op.outputs; i++) {
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
    for (; stored->count < avl_weights_of(op); stored->count++) {
        avl_stored *weight = &stored->weights[stored->count];
        OrtStatus *status = avl_read_stored(info, 1 + stored->count * tensors, weight);
        if (status)
            return status;
        if (weight->inputs != stored->weights->inputs ||
            (op->is_gated && weight->outputs != stored->weights->outputs))
            return avl_failed("expected weights with the same inputs, and as many outputs if one "
                              "gates another");
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
    stored->epilogues = avl_best_epilogues();
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
    {{AVL_OP(CREATE, compute, destroy), NAME, 1 + (WEIGHTS), WEIGHTS, TYPES, NULL}, 0, AVL_IDENTITY, 0}
#define FINISHED(CREATE, NAME, WEIGHTS, ACTIVATION)                                                \
    {{AVL_OP(CREATE, compute, destroy), NAME, 1 + 2 * (WEIGHTS), WEIGHTS, TYPES_WITH_BIAS, NULL},  \
     1,                                                                                            \
     ACTIVATION,                                                                                   \
     0}
#define GATED_LINEAR(CREATE, NAME, ACTIVATION)                                                     \
    {{AVL_OP(CREATE, compute, destroy), NAME, 3, 1, TYPES, NULL}, 0, ACTIVATION, 1}
#define LINEARS(CREATE)                                                                            \
    {LINEAR(CREATE, "Linear", 1),                                                                  \
     LINEAR(CREATE, "Linear2", 2),                                                                 \
     LINEAR(CREATE, "Linear3", 3),                                                                 \
     FINISHED(CREATE, "LinearAddBias", 1, AVL_IDENTITY),                                           \
     FINISHED(CREATE, "Linear2AddBias", 2, AVL_IDENTITY),                                          \
     FINISHED(CREATE, "Linear3AddBias", 3, AVL_IDENTITY),                                          \
     FINISHED(CREATE, "LinearAddBiasGelu", 1, AVL_GELU),                                           \
     FINISHED(CREATE, "LinearAddBiasTanhGelu", 1, AVL_TANH_GELU),                                  \
     FINISHED(CREATE, "LinearAddBiasQuickGelu", 1, AVL_QUICK_GELU),                                \
     GATED_LINEAR(CREATE, "Linear2SiluGate", AVL_SILU),                                            \
     GATED_LINEAR(CREATE, "Linear2GeluGate", AVL_GELU),                                            \
     GATED_LINEAR(CREATE, "Linear2TanhGeluGate", AVL_TANH_GELU)}

const avl_linear_op avl_plain_linears[AVL_PLAIN_LINEARS] = LINEARS(create);
const avl_linear_op avl_plain_linears_on_tiles[AVL_PLAIN_LINEARS] = LINEARS(create_on_tiles);
