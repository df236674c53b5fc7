// Ops of layers with a state as custom ops of ONNX Runtime's CPU provider.
#include "levels.h"
#include "ort_op.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { X, CONV_STATE, WEIGHT, CONVOLUTION_INPUTS };
enum { Q, K, V, DECAY, BETA, STATE, RULE_INPUTS, OUTPUTS = 2 };

static const int TYPES[] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const size_t CONVOLUTION_RANKS[] = {3, 3, 2}, RULE_RANKS[] = {4, 4, 4, 3, 3, 4};

static int fits(const avl_tensor *given, const int64_t *expected)
{
    return !memcmp(given->dims, expected, given->rank * sizeof *expected);
}

typedef struct {
    avl_convolve *convolve;
    int has_silu;
} convolution_kernel;

typedef struct {
    avl_convolve *convolve;
    const avl_convolution *of;
} convolution_work;

static void convolve_task(void *of, size_t task)
{
    const convolution_work *work = of;
    work->convolve(work->of, (int64_t)task);
}

static OrtStatus *convolve(void *kernel, OrtKernelContext *context)
{
    const convolution_kernel *op = kernel;
    avl_tensor given[CONVOLUTION_INPUTS];
    OrtStatus *status = avl_inputs(context, CONVOLUTION_RANKS, CONVOLUTION_INPUTS, given);
    if (status)
        return status;
    const int64_t *dims = given[X].dims, kernel_size = given[WEIGHT].dims[1];
    const int64_t state[] = {dims[0], kernel_size - 1, dims[2]};
    avl_convolution of = {.batch = dims[0], .rows = dims[1], .channels = dims[2],
                          .kernel = kernel_size, .has_silu = op->has_silu, .x = given[X].data,
                          .state = given[CONV_STATE].data, .weight = given[WEIGHT].data};
    if (kernel_size < 1 || given[WEIGHT].dims[0] != dims[2] || !fits(&given[CONV_STATE], state))
        return avl_failed("expected a weight for each channel and a state of one row fewer than its "
                          "inputs");
    if ((status = avl_output(context, 0, dims, 3, &of.y)) ||
        (status = avl_output(context, 1, state, 3, &of.state_new)))
        return status;
    const int64_t tasks = dims[0] * ((dims[2] + AVL_CHANNELS - 1) / AVL_CHANNELS);
    convolution_work work = {op->convolve, &of};
    return avl_api->KernelContext_ParallelFor(context, convolve_task, (size_t)tasks, 0, &work);
}

static OrtStatus *create_convolution(const OrtCustomOp *op, const OrtApi *unused_api,
                                     const OrtKernelInfo *unused_info, void **kernel)
{
    (void)unused_api, (void)unused_info;
    convolution_kernel *made = malloc(sizeof *made);
    *kernel = made;
    if (!made)
        return avl_failed("expected memory, found none");
    *made = (convolution_kernel){avl_best_convolve(), op == &avl_state_ops[1].op};
    return NULL;
}

typedef struct {
    const avl_delta_kernels *kernels;
    const avl_delta *of;
    atomic_int lacks_memory;
} rule_work;

// A head's room is its task's alone, so that as many are held as threads run.
static void rule_task(void *of, size_t task)
{
    rule_work *work = of;
    float *room = malloc((size_t)work->kernels->room(work->of) * sizeof *room);
    if (room)
        work->kernels->run(work->of, (int64_t)task, room);
    else
        atomic_store(&work->lacks_memory, 1);
    free(room);
}

static OrtStatus *begin_rule(OrtKernelContext *context, avl_delta *of)
{
    avl_tensor given[RULE_INPUTS];
    OrtStatus *status = avl_inputs(context, RULE_RANKS, RULE_INPUTS, given);
    if (status)
        return status;
    const int64_t b = given[V].dims[0], s = given[V].dims[1], h = given[V].dims[2];
    const int64_t key_heads = given[K].dims[2], key_size = given[K].dims[3];
    const int64_t value_size = given[V].dims[3];
    const int64_t key[] = {b, s, key_heads, key_size}, state[] = {b, h, key_size, value_size};
    if (!fits(&given[Q], key) || !fits(&given[K], key) || !fits(&given[STATE], state) ||
        !fits(&given[DECAY], given[V].dims) || !fits(&given[BETA], given[V].dims) ||
        key_heads < 1 || h % key_heads)
        return avl_failed("expected shapes that agree (schema/states.py)");
    *of = (avl_delta){.batch = b, .rows = s, .key_heads = key_heads, .heads = h,
                      .key_size = key_size, .value_size = value_size, .q = given[Q].data,
                      .k = given[K].data, .v = given[V].data, .decay = given[DECAY].data,
                      .beta = given[BETA].data, .state = given[STATE].data};
    status = avl_output(context, 0, given[V].dims, 4, &of->out);
    return status ? status : avl_output(context, 1, state, 4, &of->state_new);
}

static OrtStatus *rule(void *kernel, OrtKernelContext *context)
{
    avl_delta of;
    OrtStatus *status = begin_rule(context, &of);
    if (status)
        return status;
    rule_work work = {.kernels = *(const avl_delta_kernels **)kernel, .of = &of};
    const size_t tasks = (size_t)(of.batch * of.heads);
    status = avl_api->KernelContext_ParallelFor(context, rule_task, tasks, 0, &work);
    if (!status && work.lacks_memory)
        status = avl_failed("expected memory for a delta rule's chunks, found none");
    return status;
}

static OrtStatus *create_rule(const OrtCustomOp *op, const OrtApi *unused_api,
                              const OrtKernelInfo *unused_info, void **kernel)
{
    (void)op, (void)unused_api, (void)unused_info;
    const avl_delta_kernels **made = malloc(sizeof *made);
    *kernel = made;
    if (!made)
        return avl_failed("expected memory, found none");
    *made = avl_best_delta();
    return NULL;
}

#define CONVOLUTION(NAME)                                                                          \
    {                                                                                              \
        AVL_OP(create_convolution, convolve, free), NAME, CONVOLUTION_INPUTS, OUTPUTS, TYPES, NULL \
    }

const avl_op avl_state_ops[AVL_STATES] = {
    CONVOLUTION("ShortConvolution"),
    CONVOLUTION("ShortConvolutionSilu"),
    {AVL_OP(create_rule, rule, free), "GatedDeltaRule", RULE_INPUTS, OUTPUTS, TYPES, NULL},
};
