// QuantizedLinear and its like as custom ops of ONNX Runtime's CPU provider: for one to three weights
// that are multiplied with the same x, with and without zero points and what follows the products.
#include "halves.h"
#include "levels.h"
#include "linear_amx.h"
#include "ort_op.h"
#include "processor.h"
#include "unmap.h"

#include <stdlib.h>

enum { MOST_WEIGHTS = 3, MOST_INPUTS = 1 + 4 * MOST_WEIGHTS };

enum { TASKS = 16, ROWS_OF_A_TASK = 16, ALIGNMENT = 64 };

// Weights of one op; all have the same inputs and span.
typedef struct {
    const avl_linear_op *op;
    const avl_quantized_kernels *with;
    avl_finish *finish;
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
} product;

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

// Tiles [first, end) of a weight, and what follows, while a tile is in a cache; on AMX for the block of
// rows that starts with `row`.
static void multiply_tiles(const product *p, size_t i, int64_t first, int64_t end, int64_t row)
{
    const packed_weights *packed = p->packed;
    const avl_packed *weight = &packed->weights[i];
    const avl_amx_rows x = p->amx ? avl_amx_part(&p->amx_x, row) : (avl_amx_rows){0};
    const int64_t width = packed->with->tile_outputs;
    float *y = p->y[i] + row * weight->outputs;
    for (int64_t tile = first; tile < end; tile++) {
        if (p->amx)
            avl_amx->multiply_packed(weight, &x, tile, y);
        else
            packed->with->multiply(weight, &p->x, tile, y);
        const int64_t left = weight->outputs - tile * width;
        if (p->after[i].bias)
            packed->finish(&p->after[i], y, p->amx ? x.rows : p->x.rows, weight->outputs,
                           tile * width, tile * width + (left < width ? left : width));
    }
}

// A part of all weights' tiles, those of the first weight first; of a block of rows on AMX.
static void multiply_share(void *of, size_t index)
{
    const product *p = of;
    const int64_t row = p->amx ? (int64_t)(index / TASKS) * avl_amx_block(p->amx_x.rows) : 0;
    index %= TASKS;
    const avl_packed *weight = p->packed->weights;
    int64_t tiles = 0;
    for (size_t i = 0; i < p->packed->count; i++)
        tiles += p->packed->with->tiles(&weight[i]);
    int64_t tile = tiles * (int64_t)index / TASKS, end = tiles * ((int64_t)index + 1) / TASKS;
    if (p->amx)
        avl_amx->begin();
    for (size_t i = 0; tile < end; i++) {
        int64_t own = p->packed->with->tiles(&weight[i]), last = end < own ? end : own;
        if (tile < last) {
            multiply_tiles(p, i, tile, last, row);
            tile = last;
        }
        tile -= own;
        end -= own;
    }
    if (p->amx)
        avl_amx->end();
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
    return avl_api->KernelContext_ParallelFor(context, multiply_share, (size_t)blocks * TASKS, 0, p);
}

static OrtStatus *no_memory(void) { return avl_failed("expected memory for rounded rows, found none"); }

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
    for (size_t i = 0; i < packed->count; i++) {
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

// What a weight is made from.
typedef struct {
    avl_tensor codes, scales, zeros; // no zeros: rank 0
    int64_t block; // inputs that share a scale; 0: all of an output's
} source;

// `tensors` of them are inputs of the op, from the one at `index` on.
static OrtStatus *read_source(const OrtKernelInfo *info, size_t index, size_t tensors, source *from)
{
    OrtStatus *status;
    if ((status = avl_api->KernelInfoGetAttribute_int64(info, "block_size", &from->block)) ||
        (status = avl_constant(info, index, &from->codes)) ||
        (status = avl_constant(info, index + 1, &from->scales)))
        return status;
    return tensors == 3 ? avl_constant(info, index + 2, &from->zeros) : NULL;
}

// Whether a tensor is [blocks, outputs], or [outputs] with one block an output.
static int is_table(const avl_tensor *table, const source *from, const avl_packed *weight)
{
    if (!from->block)
        return table->rank == 1 && table->dims[0] == weight->outputs;
    return table->rank == 2 && table->dims[0] == weight->inputs / from->block &&
           table->dims[1] == weight->outputs;
}

// Whether 16 bits hold the scales as they are: those of exporters that round them, and of checkpoints
// that store them so. In blocks of 64 codes of 4 bits a step reads a twentieth less then.
static int are_halves(const float *scales, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (of_half(to_half(scales[i])) != scales[i])
            return 0;
    return 1;
}

static OrtStatus *measure(const source *from, avl_packed *weight)
{
    if (from->codes.rank != 2 || (from->codes.type != ORT_INT4 && from->codes.type != ORT_INT8))
        return avl_failed("expected INT4 or INT8 codes [inputs, outputs]");
    weight->inputs = from->codes.dims[0];
    weight->outputs = from->codes.dims[1];
    weight->bits = from->codes.type == ORT_INT4 ? 4 : 8;
    weight->has_zeros = from->zeros.rank != 0;
    int64_t block = from->block ? from->block : weight->inputs;
    weight->span = avl_span_of(block);
    if (!weight->span || weight->inputs % block || (weight->bits == 4 && weight->outputs % 2))
        return avl_failed("expected blocks of a multiple of 32 inputs and, of INT4, even outputs");
    if (!is_table(&from->scales, from, weight) ||
        (weight->has_zeros &&
         (!is_table(&from->zeros, from, weight) || from->zeros.type != from->codes.type)))
        return avl_failed("expected scales and zero points [inputs / block, outputs], or [outputs] "
                          "without blocks, and zero points of the codes' type");
    return NULL;
}

static OrtStatus *pack(const avl_quantized_kernels *with, const source *from, avl_packed *weight)
{
    OrtStatus *status = measure(from, weight);
    if (status)
        return status;
    const int64_t block = from->block ? from->block : weight->inputs;
    const int64_t scales = weight->inputs / block * weight->outputs;
    weight->has_halves = are_halves(from->scales.data, scales);
    const int64_t bytes = with->bytes(weight);
    weight->pieces = aligned_alloc(ALIGNMENT, (size_t)bytes);
    if (bytes && !weight->pieces)
        return avl_failed("expected memory for weights, found none");
    for (int64_t tile = 0; tile < with->tiles(weight); tile++)
        with->pack(weight, tile, from->codes.data, from->scales.data, from->zeros.data, block);
    avl_unmap(from->codes.data, (size_t)(weight->inputs * weight->outputs * weight->bits / 8));
    avl_unmap(from->scales.data, (size_t)scales * sizeof(float));
    if (weight->has_zeros)
        avl_unmap(from->zeros.data, (size_t)(scales * weight->bits / 8));
    return NULL;
}

static void destroy(void *kernel)
{
    packed_weights *packed = kernel;
    for (size_t i = 0; i < packed->count; i++)
        free(packed->weights[i].pieces);
    free(packed);
}

// The inputs of an op after x are as many tensors for each of its outputs, a bias the last of them.
static OrtStatus *pack_all(const OrtKernelInfo *info, packed_weights *packed)
{
    const avl_op *op = &packed->op->op;
    size_t tensors = (op->inputs - 1) / op->outputs, own = tensors - (size_t)packed->op->has_bias;
    for (; packed->count < op->outputs; packed->count++) {
        avl_packed *weight = &packed->weights[packed->count];
        source from = {0};
        OrtStatus *status = read_source(info, 1 + packed->count * tensors, own, &from);
        if (!status)
            status = pack(packed->with, &from, weight);
        if (!status && weight->inputs != packed->weights->inputs) {
            free(weight->pieces);
            status = avl_failed("expected weights with the same inputs");
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
    packed->finish = avl_best_finish();
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
     ACTIVATION}
// An op for each ending of `linear_ops.py`; several weights have a bias alone.
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
        OP("QuantizedLinear3" KIND, 3, TENSORS, TYPES_OF, 0, AVL_IDENTITY)

const avl_linear_op avl_quantized_linears[AVL_QUANTIZED_LINEARS] = {
    LINEARS("", 2, TYPES),
    LINEARS("WithZeros", 3, TYPES_WITH_ZEROS),
    FINISHED("", 3, TYPES_WITH_BIAS),
    FINISHED("WithZeros", 4, TYPES_WITH_BOTH),
};
