// SplitCacheStep and SplitCachePrompt as custom ops of ONNX Runtime's CPU provider.
#include "levels.h"
#include "ort_attention.h"
#include "step.h"

#include <stdlib.h>

enum { Q, K_NEW, V_NEW, K_ACTIVE, V_ACTIVE, ACTIVE_LEN, K_PARKED, V_PARKED, PARKED_LEN, WEIGHTS,
       INPUTS, BIAS_ACTIVE = INPUTS, BIAS_PARKED, BIAS_NEW, BIASED_INPUTS };
enum { OUT, MASS_ACTIVE, MASS_PARKED, MASS_NEW, OUTPUTS };

static const int TYPES[BIASED_INPUTS] = {
    ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_FLOAT,
    ORT_FLOAT, ORT_INT64, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const size_t RANKS[BIASED_INPUTS] = {4, 4, 4, 4, 4, 1, 4, 4, 1, 3, 4, 4, 4};

// `unlike` is 0 where there are no biases.
static int fits(const avl_step *step, const avl_tensor given[BIASED_INPUTS])
{
    const int64_t b = step->batch, h = step->kv_heads, s = step->rows, d = step->head_dim;
    const int64_t expected[BIASED_INPUTS][4] = {
        [Q] = {b, step->heads, s, d}, [K_NEW] = {b, h, s, d}, [V_NEW] = {b, h, s, d},
        [K_ACTIVE] = {b, h, step->active, d}, [V_ACTIVE] = {b, h, step->active, d},
        [ACTIVE_LEN] = {b}, [K_PARKED] = {b, h, step->parked, d},
        [V_PARKED] = {b, h, step->parked, d}, [PARKED_LEN] = {b},
        [WEIGHTS] = {b, step->weightings, s}, [BIAS_ACTIVE] = {b, step->unlike, s, step->active},
        [BIAS_PARKED] = {b, 1, s, step->parked}, [BIAS_NEW] = {b, 1, s, s}};
    if (step->unlike > 1 && step->unlike != h)
        return 0;
    return avl_sizes_fit(step, given, expected, step->bias_active ? BIASED_INPUTS : INPUTS);
}

int avl_sizes_fit(const avl_step *step, const avl_tensor *given, const int64_t (*expected)[4],
                  size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t axis = 0; axis < given[i].rank; axis++)
            if (given[i].dims[axis] != expected[i][axis])
                return 0;
    for (int64_t row = 0; row < step->batch; row++)
        if (step->active_len[row] < 0 || step->active_len[row] > step->active ||
            step->parked_len[row] < 0 || step->parked_len[row] > step->parked)
            return 0;
    return step->kv_heads > 0 && step->heads % step->kv_heads == 0;
}

// What the op is given, and outputs to write.
static OrtStatus *begin(OrtKernelContext *context, const avl_attention_op *op, avl_step *step)
{
    avl_tensor given[BIASED_INPUTS];
    OrtStatus *status;
    if ((status = avl_inputs(context, RANKS, op->biased ? BIASED_INPUTS : INPUTS, given)))
        return status;
    *step = (avl_step){
        .batch = given[Q].dims[0], .heads = given[Q].dims[1], .kv_heads = given[K_NEW].dims[1],
        .rows = given[Q].dims[2], .head_dim = given[Q].dims[3], .active = given[K_ACTIVE].dims[2],
        .parked = given[K_PARKED].dims[2], .weightings = given[WEIGHTS].dims[1],
        .scale = op->scale, .q = given[Q].data, .k_new = given[K_NEW].data,
        .v_new = given[V_NEW].data, .k_active = given[K_ACTIVE].data,
        .v_active = given[V_ACTIVE].data, .k_parked = given[K_PARKED].data,
        .v_parked = given[V_PARKED].data, .row_weights = given[WEIGHTS].data,
        .active_len = given[ACTIVE_LEN].data, .parked_len = given[PARKED_LEN].data};
    if (op->biased) {
        step->bias_active = given[BIAS_ACTIVE].data, step->bias_parked = given[BIAS_PARKED].data;
        step->bias_new = given[BIAS_NEW].data, step->unlike = given[BIAS_ACTIVE].dims[1];
    }
    if (!fits(step, given))
        return avl_failed("expected lengths within capacities and shapes that agree (schema/ops.py)");
    const int64_t b = step->batch, h = step->kv_heads, r = step->weightings, s = step->rows;
    if ((status = avl_output(context, OUT, (int64_t[]){b, step->heads, s, step->head_dim}, 4,
                             &step->out)) ||
        (status = avl_output(context, MASS_ACTIVE, (int64_t[]){b, h, r, step->active}, 4,
                             &step->mass_active)) ||
        (status = avl_output(context, MASS_PARKED, (int64_t[]){b, h, r, step->parked}, 4,
                             &step->mass_parked)))
        return status;
    return avl_output(context, MASS_NEW, (int64_t[]){b, h, r, s}, 4, &step->mass_new);
}

OrtStatus *avl_compute_step(OrtKernelContext *context, const avl_attention_op *op, avl_step *step)
{
    step->scratch = malloc((size_t)op->step->scratch(step) * sizeof(float));
    if (!step->scratch)
        return avl_failed("expected memory for scores, found none");
    OrtStatus *status = avl_run_step(context, op->step, step);
    free(step->scratch);
    return status;
}

// Tiles for rows as they are kept, or NULL.
static const avl_prompt_tiles *tiles_for(const avl_attention_op *op, const avl_step *step)
{
    if (step->bias_active) // is added in float32 alone
        return NULL;
    const avl_prompt_tiles *coded = step->codes && step->codes->bits == 8 ? op->code_tiles : NULL;
    const int fits = coded && step->head_dim % coded->side == 0 && step->head_dim <= coded->most;
    return fits ? coded : op->tiles;
}

OrtStatus *avl_compute_rows(OrtKernelContext *context, const avl_attention_op *op,
                            const avl_step *step)
{
    if (avl_is_few(step))
        return avl_run_few(context, op->few, step);
    return avl_run_prompt(context, op->prompt, tiles_for(op, step), step);
}

static OrtStatus *compute_step(void *kernel, OrtKernelContext *context)
{
    const avl_attention_op *op = kernel;
    avl_step step;
    OrtStatus *status = begin(context, op, &step);
    if (status)
        return status;
    if (step.rows != 1)
        return avl_failed("expected one new row");
    return avl_compute_step(context, op, &step);
}

static OrtStatus *compute_prompt(void *kernel, OrtKernelContext *context)
{
    const avl_attention_op *op = kernel;
    avl_step step;
    OrtStatus *status = begin(context, op, &step);
    return status ? status : avl_compute_rows(context, op, &step);
}

static OrtStatus *make(const OrtCustomOp *op, const OrtKernelInfo *info, int on_tiles,
                       void **kernel)
{
    avl_attention_op *made = malloc(sizeof *made);
    *kernel = made;
    if (!made)
        return avl_failed("expected memory, found none");
    made->biased = ((const avl_op *)op)->biased;
    made->step = avl_best_step();
    made->few = avl_best_few();
    made->prompt = avl_best_prompt();
    made->codes = avl_best_codes();
    made->tiles = on_tiles ? avl_best_tiles() : NULL;
    made->code_tiles = on_tiles ? avl_best_code_tiles() : NULL;
    return avl_api->KernelInfoGetAttribute_float(info, "scale", &made->scale);
}

OrtStatus *avl_create_attention(const OrtCustomOp *op, const OrtApi *unused_api,
                                const OrtKernelInfo *info, void **kernel)
{
    (void)unused_api;
    return make(op, info, 0, kernel);
}

OrtStatus *avl_create_attention_on_tiles(const OrtCustomOp *op, const OrtApi *unused_api,
                                         const OrtKernelInfo *info, void **kernel)
{
    (void)unused_api;
    return make(op, info, 1, kernel);
}

void avl_destroy_attention(void *kernel) { free(kernel); }

const avl_op avl_split_cache_step = {
    AVL_OP(avl_create_attention, compute_step, avl_destroy_attention), "SplitCacheStep",
    INPUTS, OUTPUTS, TYPES, NULL};
const avl_op avl_split_cache_prompt = {
    AVL_OP(avl_create_attention, compute_prompt, avl_destroy_attention), "SplitCachePrompt",
    INPUTS, OUTPUTS, TYPES, NULL};
const avl_op avl_split_cache_prompt_on_tiles = {
    AVL_OP(avl_create_attention_on_tiles, compute_prompt, avl_destroy_attention),
    "SplitCachePrompt", INPUTS, OUTPUTS, TYPES, NULL};

const avl_op avl_biased[AVL_BIASED] = {
    {AVL_OP(avl_create_attention, compute_step, avl_destroy_attention), "BiasedCacheStep",
     BIASED_INPUTS, OUTPUTS, TYPES, NULL, 1},
    {AVL_OP(avl_create_attention, compute_prompt, avl_destroy_attention), "BiasedCachePrompt",
     BIASED_INPUTS, OUTPUTS, TYPES, NULL, 1}};
