// QuantizedLinear and its like as custom ops of ONNX Runtime's CPU provider: for one to three weights
// that are multiplied with the same x, with and without zero points and what follows the products.
#include "levels.h"
#include "linear_amx.h"
#include "ort_linear.h"
#include "ort_op.h"
#include "processor.h"

#include <stdlib.h>

enum { MOST_WEIGHTS = 3, MOST_INPUTS = 1 + 4 * MOST_WEIGHTS };

enum { TASKS = 16, ROWS_OF_A_TASK = 16, ALIGNMENT = 64 };

// Weights of one op; all have the same inputs and span.
typedef struct {
    const avl_linear_op *op;
    const avl_quantized_kernels *with;
    const avl_epilogues *epilogues;
    size_t count;
    avl_packed weights[MOST_WEIGHTS];
    int64_t amx_rows; // from how many rows of x on AMX multiplies; 0: never
} packed_weights;

typedef struct {
    const packed_weights *packed;
    int amx;
    avl_rounded x;      // for all but AMX
    avl_amx_rows amx_x; // for AMX
    const float *from;
    float *y[MOST_WEIGHTS];
    avl_epilogue after[MOST_WEIGHTS];
    _Atomic int lacks_memory; // some task found none
} product;

static OrtStatus *no_memory(void) { return avl_failed("expected memory for rows, found none"); }

static void round_rows(void *of, size_t index)
{
    const product *p = of;
    int64_t first = (int64_t)index * ROWS_OF_A_TASK, end = first + ROWS_OF_A_TASK;
    for (int64_t row = first; row < end && row < p->x.rows; row++)
        p->packed->with->round(p->packed->weights, p->from, &p->x, row);
}

static void round_group(void *of, size_t index)
{
    const product *p = of;
    avl_amx->round(p->from, &p->amx_x, (int64_t)index);
}

// Of a weight that another gates, tiles at a time: of few rows all that a task may have, as memory is
// fastest in its own order, of more as many as stay in a cache.
static int64_t gated_tiles(const product *p)
{
    const packed_weights *packed = p->packed;
    return p->amx || p->x.rows > ROWS_OF_A_TASK ? 1 : packed->with->tiles(packed->weights) / TASKS + 1;
}

// Memory for the products of a weight that another gates.
static float *place_of_gated(const product *p)
{
    const int64_t rows = p->amx ? avl_amx_block(p->amx_x.rows) : p->x.rows;
    const int64_t columns = gated_tiles(p) * p->packed->with->tile_outputs;
    return malloc((size_t)(rows * columns) * sizeof(float));
}

static void multiply_tile(const product *p, const avl_packed *weight, const avl_amx_rows *x,
                          int64_t tile, float *y)
{
    if (p->amx)
        avl_amx->multiply_packed(weight, x, tile, y);
    else
        p->packed->with->multiply(weight, &p->x, tile, y);
}

static int64_t columns_of(const packed_weights *packed, const avl_packed *weight, int64_t tile)
{
    const int64_t column = tile * packed->with->tile_outputs;
    return column < weight->outputs ? column : weight->outputs;
}

// Gates tiles [first, end) of y by products of the second weight, which are put into `by`.
static void gate_tiles(const product *p, const avl_amx_rows *x, int64_t first, int64_t end, float *y,
                       float *by)
{
    const packed_weights *packed = p->packed;
    const avl_packed *weight = &packed->weights[1];
    const int64_t column = columns_of(packed, weight, first), last = columns_of(packed, weight, end);
    avl_packed part = *weight; // whose products lie side by side
    part.outputs = last - column;
    part.pieces += packed->with->bytes(weight) / packed->with->tiles(weight) * first;
    for (int64_t tile = first; tile < end; tile++)
        multiply_tile(p, &part, x, tile - first, by);
    packed->epilogues->gate(packed->op->activation, y, p->amx ? x->rows : p->x.rows, weight->outputs,
                            column, last, by);
}

// Tiles [first, end) of a weight, and what follows, while a tile is in a cache; on AMX for the block of
// rows that starts with `row`. `gated`: where products of a weight that the first gates may lie.
static void multiply_tiles(const product *p, size_t i, int64_t first, int64_t end, int64_t row,
                           float *gated)
{
    const packed_weights *packed = p->packed;
    const avl_packed *weight = &packed->weights[i];
    const avl_amx_rows x = p->amx ? avl_amx_part(&p->amx_x, row) : (avl_amx_rows){0};
    float *y = p->y[i] + row * weight->outputs;
    const int64_t step = gated ? gated_tiles(p) : 1;
    for (int64_t tile = first; tile < end; tile += step) {
        const int64_t last = tile + step < end ? tile + step : end;
        for (int64_t one = tile; one < last; one++)
            multiply_tile(p, weight, &x, one, y);
        if (gated)
            gate_tiles(p, &x, tile, last, y, gated);
        else if (p->after[i].bias)
            packed->epilogues->finish(&p->after[i], y, p->amx ? x.rows : p->x.rows, weight->outputs,
                                      columns_of(packed, weight, tile),
                                      columns_of(packed, weight, last));
    }
}

// A part of all weights' tiles, those of the first weight first; of a block of rows on AMX. A weight
// that is gated goes with the first.
static void multiply_share(void *of, size_t index)
{
    product *p = of;
    const packed_weights *packed = p->packed;
    const int64_t row = p->amx ? (int64_t)(index / TASKS) * avl_amx_block(p->amx_x.rows) : 0;
    index %= TASKS;
    const avl_packed *weight = packed->weights;
    float *gated = packed->op->is_gated ? place_of_gated(p) : NULL;
    if (packed->op->is_gated && !gated) {
        p->lacks_memory = 1;
        return;
    }
    int64_t tiles = 0;
    for (size_t i = 0; i < (gated ? 1 : packed->count); i++)
        tiles += packed->with->tiles(&weight[i]);
    int64_t tile = tiles * (int64_t)index / TASKS, end = tiles * ((int64_t)index + 1) / TASKS;
    if (p->amx)
        avl_amx->begin();
    for (size_t i = 0; tile < end; i++) {
        int64_t own = packed->with->tiles(&weight[i]), last = end < own ? end : own;
        if (tile < last) {
            multiply_tiles(p, i, tile, last, row, gated);
            tile = last;
        }
        tile -= own;
        end -= own;
    }
    if (p->amx)
        avl_amx->end();
    free(gated);
}

// Rounds in `tasks` of `round`, which is given `p` and an index, then multiplies.
static OrtStatus *run(OrtKernelContext *context, product *p, void (*round)(void *, size_t),
                      int64_t tasks)
{
    OrtStatus *status = NULL;
    if (tasks > 1)
        status = avl_api->KernelContext_ParallelFor(context, round, (size_t)tasks, 0, p);
    else // so few rows that waking other threads would take longer
        round(p, 0);
    if (status)
        return status;
    const int64_t blocks = p->amx ? avl_amx_blocks(p->amx_x.rows) : 1;
    status = avl_api->KernelContext_ParallelFor(context, multiply_share, (size_t)blocks * TASKS, 0, p);
    return status || !p->lacks_memory ? status : no_memory();
}

static OrtStatus *multiply(OrtKernelContext *context, product *p, int64_t rows)
{
    const avl_packed *first = p->packed->weights;
    size_t codes = (size_t)(rows * first->inputs), spans = codes / (size_t)first->span;
    char *memory = malloc(codes + spans * (sizeof(float) + sizeof(int32_t)));
    if (!memory)
        return no_memory();
    p->x.rows = rows;
    p->x.scales = (float *)memory;
    p->x.sums = (int32_t *)(p->x.scales + spans);
    p->x.codes = (int8_t *)(p->x.sums + spans);
    OrtStatus *status =
        run(context, p, round_rows, (rows + ROWS_OF_A_TASK - 1) / ROWS_OF_A_TASK);
    free(memory);
    return status;
}

static OrtStatus *multiply_on_amx(OrtKernelContext *context, product *p, int64_t rows)
{
    const int64_t inputs = p->packed->weights->inputs;
    size_t values = (size_t)avl_amx_values(rows, inputs);
    p->amx = 1;
    p->amx_x = (avl_amx_rows){.rows = rows, .inputs = inputs};
    p->amx_x.values = aligned_alloc(ALIGNMENT, values * sizeof *p->amx_x.values);
    if (!p->amx_x.values)
        return no_memory();
    OrtStatus *status =
        run(context, p, round_group, avl_amx_groups(rows));
    free(p->amx_x.values);
    return status;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const packed_weights *packed = kernel;
    const avl_packed *first = packed->weights;
    avl_tensor x;
    OrtStatus *status = avl_input(context, 0, &x);
    if (status)
        return status;
    if (x.rank != 2 || x.dims[1] != first->inputs)
        return avl_failed("expected x [rows, inputs] with the weight's inputs");
    product p = {.packed = packed, .from = x.data};
    int64_t rows = x.dims[0];
    for (size_t i = 0; i < packed->op->op.outputs; i++) {
        const int64_t dims[2] = {rows, first[i].outputs};
        if ((status = avl_output(context, i, dims, 2, &p.y[i])))
            return status;
        if (packed->op->has_bias &&
            (status = avl_bias(context, packed->op, i, first[i].outputs, &p.after[i])))
            return status;
    }
    if (!rows)
        return NULL;
    if (packed->amx_rows && rows >= packed->amx_rows)
        return multiply_on_amx(context, &p, rows);
    return multiply(context, &p, rows);
}

static void destroy(void *kernel)
{
    packed_weights *packed = kernel;
    for (size_t i = 0; i < packed->count; i++)
        free(packed->weights[i].pieces);
    free(packed);
}

// The inputs of an op after x are as many tensors for each of its weights, a bias the last of them.
static OrtStatus *pack_all(const OrtKernelInfo *info, packed_weights *packed)
{
    const size_t weights = avl_weights_of(packed->op);
    size_t tensors = (packed->op->op.inputs - 1) / weights;
    size_t own = tensors - (size_t)packed->op->has_bias;
    for (; packed->count < weights; packed->count++) {
        avl_packed *weight = &packed->weights[packed->count];
        OrtStatus *status =
            avl_pack_weight(info, 1 + packed->count * tensors, own, packed->with, weight);
        if (!status && (weight->inputs != packed->weights->inputs ||
                        (packed->op->is_gated && weight->outputs != packed->weights->outputs))) {
            free(weight->pieces);
            status = avl_failed("expected weights with the same inputs, and as many outputs if one "
                                "gates another");
        }
        if (status)
            return status;
        if (avl_amx && avl_has_amx() && packed->amx_rows < AVL_AMX_LEAST_ROWS)
            packed->amx_rows = AVL_AMX_LEAST_ROWS;
    }
    return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused_api, const OrtKernelInfo *info,
                         void **kernel)
{
    (void)unused_api;
    packed_weights *packed = calloc(1, sizeof *packed);
    if (!packed)
        return avl_failed("expected memory, found none");
    packed->op = (const avl_linear_op *)op;
    packed->with = avl_best_quantized();
    packed->epilogues = avl_best_epilogues();
    OrtStatus *status = pack_all(info, packed);
    if (status)
        destroy(packed);
    else
        *kernel = packed;
    return status;
}

#define F ORT_FLOAT
static const int TYPES[] = {F, ORT_ANY, F, ORT_ANY, F, ORT_ANY, F};
static const int TYPES_WITH_ZEROS[] = {F,       ORT_ANY, F,       ORT_ANY, ORT_ANY,
                                       F,       ORT_ANY, ORT_ANY, F,       ORT_ANY};
static const int TYPES_WITH_BIAS[] = {F, ORT_ANY, F, F, ORT_ANY, F, F, ORT_ANY, F, F};
static const int TYPES_WITH_BOTH[MOST_INPUTS] = {F,       ORT_ANY, F,       ORT_ANY, F,
                                                 ORT_ANY, F,       ORT_ANY, F,       ORT_ANY,
                                                 F,       ORT_ANY, F};
#undef F

#define OP(NAME, WEIGHTS, TENSORS, TYPES_OF, BIAS, ACTIVATION)                                     \
    {{AVL_OP(create, compute, destroy), NAME, 1 + (TENSORS) * (WEIGHTS), WEIGHTS, TYPES_OF, NULL}, \
     BIAS,                                                                                         \
     ACTIVATION,                                                                                   \
     0}
#define GATED(NAME, TENSORS, TYPES_OF, ACTIVATION)                                                 \
    {{AVL_OP(create, compute, destroy), NAME, 1 + (TENSORS) * 2, 1, TYPES_OF, NULL}, 0, ACTIVATION, 1}
// An op for each ending and gate of `linear_ops.py`; several weights have a bias alone.
#define FINISHED(KIND, TENSORS, TYPES_OF)                                                          \
    OP("QuantizedLinear" KIND "AddBias", 1, TENSORS, TYPES_OF, 1, AVL_IDENTITY),                   \
        OP("QuantizedLinear2" KIND "AddBias", 2, TENSORS, TYPES_OF, 1, AVL_IDENTITY),              \
        OP("QuantizedLinear3" KIND "AddBias", 3, TENSORS, TYPES_OF, 1, AVL_IDENTITY),              \
        OP("QuantizedLinear" KIND "AddBiasGelu", 1, TENSORS, TYPES_OF, 1, AVL_GELU),               \
        OP("QuantizedLinear" KIND "AddBiasTanhGelu", 1, TENSORS, TYPES_OF, 1, AVL_TANH_GELU),      \
        OP("QuantizedLinear" KIND "AddBiasQuickGelu", 1, TENSORS, TYPES_OF, 1, AVL_QUICK_GELU)
#define LINEARS(KIND, TENSORS, TYPES_OF)                                                           \
    OP("QuantizedLinear" KIND, 1, TENSORS, TYPES_OF, 0, AVL_IDENTITY),                             \
        OP("QuantizedLinear2" KIND, 2, TENSORS, TYPES_OF, 0, AVL_IDENTITY),                        \
        OP("QuantizedLinear3" KIND, 3, TENSORS, TYPES_OF, 0, AVL_IDENTITY),                        \
        GATED("QuantizedLinear2" KIND "SiluGate", TENSORS, TYPES_OF, AVL_SILU),                    \
        GATED("QuantizedLinear2" KIND "GeluGate", TENSORS, TYPES_OF, AVL_GELU),                    \
        GATED("QuantizedLinear2" KIND "TanhGeluGate", TENSORS, TYPES_OF, AVL_TANH_GELU)

const avl_linear_op avl_quantized_linears[AVL_QUANTIZED_LINEARS] = {
    LINEARS("", 2, TYPES),
    LINEARS("WithZeros", 3, TYPES_WITH_ZEROS),
    FINISHED("", 3, TYPES_WITH_BIAS),
    FINISHED("WithZeros", 4, TYPES_WITH_BOTH),
};
