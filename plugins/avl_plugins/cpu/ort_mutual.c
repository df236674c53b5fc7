// MutualAttention on tiles as a custom op of ONNX Runtime's CPU provider: a prompt without a cache,
// whose rows see each other.
#include "ort_attention.h"

#include <stdlib.h>
#include <string.h>

enum { Q, K, V, INPUTS, OUTPUTS = 1, RANK = 4 };

static const int TYPES[INPUTS] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const size_t RANKS[INPUTS] = {RANK, RANK, RANK};

static OrtStatus *begin(OrtKernelContext *context, float scale, avl_step *step)
{
    avl_tensor given[INPUTS];
    OrtStatus *status = avl_inputs(context, RANKS, INPUTS, given);
    if (status)
        return status;
    const int64_t *dims = given[Q].dims;
    for (size_t i = K; i < INPUTS; i++)
        if (memcmp(given[i].dims, dims, RANK * sizeof *dims))
            return avl_failed("expected queries, keys and values of the same shape");
    *step = (avl_step){.batch = dims[0], .heads = dims[2], .kv_heads = dims[2], .rows = dims[1],
                       .head_dim = dims[3], .scale = scale, .q = given[Q].data,
                       .k_new = given[K].data, .v_new = given[V].data, .mutual = 1};
    return avl_output(context, 0, dims, RANK, &step->out);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const avl_attention_op *op = kernel;
    avl_step step;
    OrtStatus *status = begin(context, op->scale, &step);
    if (status || step.batch * step.heads * step.rows * step.head_dim == 0)
        return status;
    int64_t *none = calloc((size_t)step.batch, sizeof *none); // cached rows
    if (!none)
        return avl_failed("expected memory for lengths, found none");
    step.active_len = step.parked_len = none;
    status = avl_run_prompt(context, op->prompt, op->tiles, &step);
    free(none);
    return status;
}

const avl_op avl_mutual_attention = {
    AVL_OP(avl_create_attention_on_tiles, compute, avl_destroy_attention), "MutualAttention", INPUTS,
    OUTPUTS, TYPES, NULL};
