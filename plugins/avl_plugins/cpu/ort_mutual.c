// MutualAttention and MaskedMutualAttention as custom ops of ONNX Runtime's CPU provider: a
// prompt without a cache, whose rows see each other.
#include "levels.h"
#include "ort_attention.h"

#include <stdlib.h>
#include <string.h>

enum { Q, K, V, SEEN, OUTPUTS = 1, RANK = 4 };

static const int TYPES[] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_BOOL};
static const size_t RANKS[] = {RANK, RANK, RANK, 1};

static OrtStatus *begin(OrtKernelContext *context, float scale, size_t inputs, avl_tensor *given,
                        avl_step *step)
{
    OrtStatus *status = avl_inputs(context, RANKS, inputs, given);
    if (status)
        return status;
    const int64_t *dims = given[Q].dims, *keys = given[K].dims;
    if (keys[0] != dims[0] || keys[2] != dims[2] || keys[3] != dims[3] ||
        memcmp(given[V].dims, keys, RANK * sizeof *keys))
        return avl_failed("expected queries, keys and values of the same shape, but for how many "
                          "queries there are");
    if (inputs > SEEN && given[SEEN].dims[0] != keys[1])
        return avl_failed("expected seen to have one entry for each key");
    *step = (avl_step){.batch = dims[0], .heads = dims[2], .kv_heads = dims[2], .rows = dims[1],
                       .head_dim = dims[3], .scale = scale, .q = given[Q].data,
                       .k_new = given[K].data, .v_new = given[V].data, .mutual = keys[1]};
    return avl_output(context, 0, dims, RANK, &step->out);
}

static OrtStatus *attend(const avl_attention_op *op, OrtKernelContext *context, avl_step *step)
{
    int64_t *none = calloc((size_t)step->batch, sizeof *none); // cached rows
    if (!none)
        return avl_failed("expected memory for lengths, found none");
    step->active_len = step->parked_len = none;
    OrtStatus *status = avl_run_prompt(context, op->prompt, op->tiles, step);
    free(none);
    return status;
}

static int is_empty(const avl_step *step)
{
    return step->batch * step->heads * step->rows * step->head_dim == 0;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const avl_attention_op *op = kernel;
    avl_tensor given[SEEN];
    avl_step step;
    OrtStatus *status = begin(context, op->scale, SEEN, given, &step);
    if (!status && !is_empty(&step) && !step.mutual)
        return avl_failed("expected a key, found none");
    return status || is_empty(&step) ? status : attend(op, context, &step);
}

// The rows that are seen, [B, seen, H, D] of [B, K, H, D]; returns where others of them may follow.
static float *keep_seen(const avl_step *step, const char *seen, int64_t count, const float *rows,
                        float *to)
{
    const int64_t each = step->heads * step->head_dim;
    for (int64_t b = 0; b < step->batch; b++)
        for (int64_t s = 0; s < count; s++)
            if (seen[s]) {
                memcpy(to, rows + (b * count + s) * each, (size_t)each * sizeof *to);
                to += each;
            }
    return to;
}

static OrtStatus *compute_masked(void *kernel, OrtKernelContext *context)
{
    const avl_attention_op *op = kernel;
    avl_tensor given[SEEN + 1];
    avl_step step;
    OrtStatus *status = begin(context, op->scale, SEEN + 1, given, &step);
    if (status || is_empty(&step))
        return status;
    const char *seen = given[SEEN].data;
    const int64_t count = step.mutual;
    step.mutual = 0;
    for (int64_t s = 0; s < count; s++)
        step.mutual += seen[s] != 0;
    if (!step.mutual)
        return avl_failed("expected a key that is seen, found none");
    const int64_t kept = step.batch * step.mutual * step.heads * step.head_dim;
    float *keys = malloc((size_t)(2 * kept) * sizeof *keys);
    if (!keys)
        return avl_failed("expected memory for keys and values, found none");
    float *values = keep_seen(&step, seen, count, step.k_new, keys);
    keep_seen(&step, seen, count, step.v_new, values);
    step.k_new = keys;
    step.v_new = values;
    status = attend(op, context, &step);
    free(keys);
    return status;
}

static OrtStatus *create_on_tiles(const OrtCustomOp *op, const OrtApi *unused_api,
                                  const OrtKernelInfo *info, void **kernel)
{
    OrtStatus *status = avl_create_attention(op, unused_api, info, kernel);
    if (!status)
        ((avl_attention_op *)*kernel)->tiles = avl_best_mutual_tiles();
    return status;
}

#define MUTUAL(NAME, CREATE, COMPUTE, INPUTS)                                                      \
    {                                                                                              \
        AVL_OP(CREATE, COMPUTE, avl_destroy_attention), NAME, INPUTS, OUTPUTS, TYPES, NULL         \
    }
#define BOTH(CREATE)                                                                               \
    {                                                                                              \
        MUTUAL("MutualAttention", CREATE, compute, SEEN),                                          \
        MUTUAL("MaskedMutualAttention", CREATE, compute_masked, SEEN + 1),                         \
    }

const avl_op avl_mutual_attention[AVL_MUTUAL] = BOTH(avl_create_attention);
const avl_op avl_mutual_attention_on_tiles[AVL_MUTUAL] = BOTH(create_on_tiles);
