// QuantizedCacheAttention as a custom op of ONNX Runtime's CPU provider.
#include "ort_attention.h"

#include <stdlib.h>

enum { Q, K_NEW, V_NEW, K_ACTIVE, V_ACTIVE, K_ACTIVE_SCALES, V_ACTIVE_SCALES, ACTIVE_LEN, K_PARKED,
       V_PARKED, K_PARKED_SCALES, V_PARKED_SCALES, PARKED_LEN, WEIGHTS, INPUTS };
enum { OUT, MASS_ACTIVE, MASS_PARKED, MASS_NEW, K_CODES, V_CODES, K_SCALES, V_SCALES, OUTPUTS };

static const int TYPES[INPUTS] = {
    ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_INT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT,
    ORT_INT64, ORT_INT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_FLOAT};
static const int MADE[OUTPUTS] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,
                                  ORT_INT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT};

// A call: what it is given and makes, and memory for rotated queries and keys.
typedef struct {
    const avl_attention_op *op;
    avl_step step;
    avl_codes codes;
    const float *q, *k_new, *v_new;            // as they are given
    int8_t *k_codes, *v_codes;                 // of new rows
    float *k_scales, *v_scales, *queries, *keys;
} call;

static int fits(const avl_step *step, const avl_tensor given[INPUTS])
{
    const int64_t b = step->batch, h = step->kv_heads, s = step->rows, d = step->head_dim;
    const int64_t a = step->active, p = step->parked;
    const int64_t expected[INPUTS][4] = {
        [Q] = {b, step->heads, s, d}, [K_NEW] = {b, h, s, d}, [V_NEW] = {b, h, s, d},
        [K_ACTIVE] = {b, h, a, d}, [V_ACTIVE] = {b, h, a, d}, [K_ACTIVE_SCALES] = {b, h, a, 1},
        [V_ACTIVE_SCALES] = {b, h, a, 1}, [ACTIVE_LEN] = {b, 1, 1, 1}, [K_PARKED] = {b, h, p, d},
        [V_PARKED] = {b, h, p, d}, [K_PARKED_SCALES] = {b, h, p, 1},
        [V_PARKED_SCALES] = {b, h, p, 1}, [PARKED_LEN] = {b, 1, 1, 1},
        [WEIGHTS] = {b, step->weightings, s, 1}};
    return avl_sizes_fit(step, given, expected, INPUTS);
}

static OrtStatus *make_outputs(OrtKernelContext *context, call *one)
{
    avl_step *step = &one->step;
    const int64_t b = step->batch, h = step->kv_heads, r = step->weightings, s = step->rows;
    const int64_t d = step->head_dim;
    const struct {
        int64_t dims[4];
        void *to;
    } made[OUTPUTS] = {
        [OUT] = {{b, step->heads, s, d}, &step->out},
        [MASS_ACTIVE] = {{b, h, r, step->active}, &step->mass_active},
        [MASS_PARKED] = {{b, h, r, step->parked}, &step->mass_parked},
        [MASS_NEW] = {{b, h, r, s}, &step->mass_new},
        [K_CODES] = {{b, h, s, d}, &one->k_codes},
        [V_CODES] = {{b, h, s, d}, &one->v_codes},
        [K_SCALES] = {{b, h, s, 1}, &one->k_scales},
        [V_SCALES] = {{b, h, s, 1}, &one->v_scales}};
    OrtStatus *status = NULL;
    for (size_t i = 0; !status && i < OUTPUTS; i++)
        status = avl_output(context, i, made[i].dims, 4, made[i].to);
    return status;
}

// What the op is given, and outputs to write.
static OrtStatus *begin(OrtKernelContext *context, const avl_attention_op *op, call *one)
{
    static const size_t RANKS[INPUTS] = {4, 4, 4, 4, 4, 4, 4, 1, 4, 4, 4, 4, 1, 3};
    avl_tensor given[INPUTS];
    OrtStatus *status;
    if ((status = avl_inputs(context, RANKS, INPUTS, given)))
        return status;
    *one = (call){
        .op = op, .q = given[Q].data, .k_new = given[K_NEW].data, .v_new = given[V_NEW].data,
        .step = {.batch = given[Q].dims[0], .heads = given[Q].dims[1],
                 .kv_heads = given[K_NEW].dims[1], .rows = given[Q].dims[2],
                 .head_dim = given[Q].dims[3], .active = given[K_ACTIVE].dims[2],
                 .parked = given[K_PARKED].dims[2], .weightings = given[WEIGHTS].dims[1],
                 .scale = op->scale, .row_weights = given[WEIGHTS].data,
                 .active_len = given[ACTIVE_LEN].data, .parked_len = given[PARKED_LEN].data},
        .codes = {.k_active = given[K_ACTIVE].data, .v_active = given[V_ACTIVE].data,
                  .k_active_scales = given[K_ACTIVE_SCALES].data,
                  .v_active_scales = given[V_ACTIVE_SCALES].data,
                  .k_parked = given[K_PARKED].data, .v_parked = given[V_PARKED].data,
                  .k_parked_scales = given[K_PARKED_SCALES].data,
                  .v_parked_scales = given[V_PARKED_SCALES].data}};
    if (!fits(&one->step, given))
        return avl_failed("expected lengths within capacities and shapes that agree (schema.py)");
    if ((status = make_outputs(context, one)))
        return status;
    one->codes.k_new = one->k_codes, one->codes.v_new = one->v_codes;
    one->codes.k_new_scales = one->k_scales, one->codes.v_new_scales = one->v_scales;
    return NULL;
}

// Queries and keys of a part, a KV head of a sequence, are rotated; its new rows become codes.
static void code_part(void *of, size_t part)
{
    call *one = of;
    const avl_code_kernels *codes = one->op->codes;
    const int64_t s = one->step.rows, d = one->step.head_dim, at = (int64_t)part * s;
    const int64_t group = one->step.heads / one->step.kv_heads;
    codes->rotate(one->q + at * group * d, group * s, d, one->queries + at * group * d);
    codes->rotate(one->k_new + at * d, s, d, one->keys + at * d);
    codes->round(one->keys + at * d, s, d, one->k_codes + at * d, one->k_scales + at);
    codes->round(one->v_new + at * d, s, d, one->v_codes + at * d, one->v_scales + at);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    call one;
    OrtStatus *status = begin(context, kernel, &one);
    if (status)
        return status;
    const avl_step *step = &one.step;
    const int64_t each = step->batch * step->rows * step->head_dim;
    const size_t parts = (size_t)(step->batch * step->kv_heads);
    one.queries = malloc((size_t)(each * (step->heads + step->kv_heads)) * sizeof(float));
    if (!one.queries)
        return avl_failed("expected memory for rotated rows, found none");
    one.keys = one.queries + each * step->heads;
    // Of a step it is too little to wake other threads for.
    for (size_t part = 0; step->rows == 1 && part < parts; part++)
        code_part(&one, part);
    if (step->rows > 1)
        status = avl_api->KernelContext_ParallelFor(context, code_part, parts, 0, &one);
    one.step.q = one.queries;
    one.step.codes = &one.codes;
    if (!status)
        status = step->rows == 1 ? avl_compute_step(context, one.op, &one.step)
                                 : avl_run_prompt(context, one.op->prompt, one.op->tiles, &one.step);
    free(one.queries);
    return status;
}

const avl_op avl_quantized_cache_attention = {
    AVL_OP(avl_create_attention, compute, avl_destroy_attention), "QuantizedCacheAttention",
    INPUTS, OUTPUTS, TYPES, MADE};
const avl_op avl_quantized_cache_attention_on_tiles = {
    AVL_OP(avl_create_attention_on_tiles, compute, avl_destroy_attention),
    "QuantizedCacheAttention", INPUTS, OUTPUTS, TYPES, MADE};
