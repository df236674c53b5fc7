// HalfCacheAttention and QuantizedCacheAttention as custom ops of ONNX Runtime's CPU provider.
#include "ort_attention.h"

#include <stdlib.h>
#include <string.h>

// Inputs of an op whose rows have scales, and of one whose rows have none: places among them differ.
enum { Q, K_NEW, V_NEW, K_ACTIVE, V_ACTIVE, MOST_INPUTS = 14, FEWEST_INPUTS = 10, BIASES = 3 };
enum { OUT, MASS_ACTIVE, MASS_PARKED, MASS_NEW, K_MADE, V_MADE, FEWEST_OUTPUTS, K_SCALES = 6,
       V_SCALES, MOST_OUTPUTS };

static const int CODE_TYPES[MOST_INPUTS + BIASES] = {
    ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_INT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_INT8,
    ORT_INT8, ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const int CODES_MADE[MOST_OUTPUTS] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,
                                             ORT_INT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT};
static const int HALF_TYPES[FEWEST_INPUTS + BIASES] = {
    ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_HALF, ORT_HALF, ORT_INT64, ORT_HALF, ORT_HALF, ORT_INT64,
    ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const int HALVES_MADE[FEWEST_OUTPUTS] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,
                                                ORT_HALF, ORT_HALF};

// A call: what it is given and makes, and memory for rotated queries and keys.
typedef struct {
    const avl_attention_op *op;
    avl_step step;
    avl_codes codes;
    const float *q, *k_new, *v_new; // as they are given
    void *k_made, *v_made;          // new rows as they are kept
    float *k_scales, *v_scales, *queries, *keys;
} call;

// Where inputs lie that not all ops have at the same place.
typedef struct {
    size_t active_scales, active_len, parked, parked_scales, parked_len, weights, count;
} order;

static order order_of(int scaled)
{
    const size_t active_len = scaled ? 7 : 5, parked = active_len + 1;
    const size_t parked_len = parked + (scaled ? 4 : 2);
    return (order){V_ACTIVE + 1, active_len, parked, parked + 2, parked_len, parked_len + 1,
                   parked_len + 2};
}

static int fits(const avl_step *step, const avl_tensor *given, int scaled)
{
    const int64_t b = step->batch, h = step->kv_heads, s = step->rows, d = step->head_dim;
    const int64_t a = step->active, p = step->parked;
    const order at = order_of(scaled);
    const int64_t active[4] = {b, h, a, d}, parked[4] = {b, h, p, d};
    int64_t expected[MOST_INPUTS + BIASES][4] = {
        [Q] = {b, step->heads, s, d}, [K_NEW] = {b, h, s, d}, [V_NEW] = {b, h, s, d}};
    expected[at.active_len][0] = expected[at.parked_len][0] = b;
    for (size_t i = 0; i < 4; i++) {
        expected[K_ACTIVE][i] = expected[V_ACTIVE][i] = active[i];
        expected[at.parked][i] = expected[at.parked + 1][i] = parked[i];
        for (size_t one = 0; scaled && one < 2; one++) {
            expected[at.active_scales + one][i] = i < 3 ? active[i] : 1;
            expected[at.parked_scales + one][i] = i < 3 ? parked[i] : 1;
        }
    }
    const int64_t weights[3] = {b, step->weightings, s};
    for (size_t i = 0; i < 3; i++)
        expected[at.weights][i] = weights[i];
    const int64_t biases[BIASES][4] = {{b, step->unlike, s, a}, {b, 1, s, p}, {b, 1, s, s}};
    memcpy(expected[at.count], biases, sizeof biases);
    if (step->unlike > 1 && step->unlike != h)
        return 0;
    return avl_sizes_fit(step, given, (const int64_t(*)[4])expected,
                         at.count + (step->bias_active ? BIASES : 0));
}

static OrtStatus *make_outputs(OrtKernelContext *context, call *one, int scaled)
{
    avl_step *step = &one->step;
    const int64_t b = step->batch, h = step->kv_heads, r = step->weightings, s = step->rows;
    const int64_t d = step->head_dim;
    const struct {
        int64_t dims[4];
        void *to;
    } made[MOST_OUTPUTS] = {
        [OUT] = {{b, step->heads, s, d}, &step->out},
        [MASS_ACTIVE] = {{b, h, r, step->active}, &step->mass_active},
        [MASS_PARKED] = {{b, h, r, step->parked}, &step->mass_parked},
        [MASS_NEW] = {{b, h, r, s}, &step->mass_new},
        [K_MADE] = {{b, h, s, d}, &one->k_made},
        [V_MADE] = {{b, h, s, d}, &one->v_made},
        [K_SCALES] = {{b, h, s, 1}, &one->k_scales},
        [V_SCALES] = {{b, h, s, 1}, &one->v_scales}};
    OrtStatus *status = NULL;
    for (size_t i = 0; !status && i < (scaled ? MOST_OUTPUTS : FEWEST_OUTPUTS); i++)
        status = avl_output(context, i, made[i].dims, 4, made[i].to);
    return status;
}

// What the op is given, and outputs to write.
static OrtStatus *begin(OrtKernelContext *context, const avl_attention_op *op, int64_t bits,
                        call *one)
{
    static const size_t RANKS[] = {4, 4, 4, 4, 4, 4, 4, 1, 4, 4, 4, 4, 1, 3, 4, 4, 4};
    static const size_t RANKS_WITHOUT[] = {4, 4, 4, 4, 4, 1, 4, 4, 1, 3, 4, 4, 4};
    const int scaled = bits == 8;
    const order at = order_of(scaled);
    avl_tensor given[MOST_INPUTS + BIASES];
    const size_t count = at.count + (op->biased ? BIASES : 0);
    OrtStatus *status;
    if ((status = avl_inputs(context, scaled ? RANKS : RANKS_WITHOUT, count, given)))
        return status;
    *one = (call){
        .op = op, .q = given[Q].data, .k_new = given[K_NEW].data, .v_new = given[V_NEW].data,
        .step = {.batch = given[Q].dims[0], .heads = given[Q].dims[1],
                 .kv_heads = given[K_NEW].dims[1], .rows = given[Q].dims[2],
                 .head_dim = given[Q].dims[3], .active = given[K_ACTIVE].dims[2],
                 .parked = given[at.parked].dims[2], .weightings = given[at.weights].dims[1],
                 .scale = op->scale, .row_weights = given[at.weights].data,
                 .active_len = given[at.active_len].data, .parked_len = given[at.parked_len].data},
        .codes = {.k_active = given[K_ACTIVE].data, .v_active = given[V_ACTIVE].data,
                  .k_parked = given[at.parked].data, .v_parked = given[at.parked + 1].data,
                  .bits = bits}};
    avl_codes *codes = &one->codes;
    if (op->biased) {
        const avl_tensor *biases = given + at.count;
        one->step.bias_active = biases[0].data, one->step.bias_parked = biases[1].data;
        one->step.bias_new = biases[2].data, one->step.unlike = biases[0].dims[1];
    }
    if (!fits(&one->step, given, scaled))
        return avl_failed("expected lengths within capacities and shapes that agree (schema/ops.py)");
    if ((status = make_outputs(context, one, scaled)))
        return status;
    codes->k_new = one->k_made, codes->v_new = one->v_made;
    if (!scaled)
        return NULL;
    codes->k_active_scales = given[at.active_scales].data;
    codes->v_active_scales = given[at.active_scales + 1].data;
    codes->k_parked_scales = given[at.parked_scales].data;
    codes->v_parked_scales = given[at.parked_scales + 1].data;
    codes->k_new_scales = one->k_scales, codes->v_new_scales = one->v_scales;
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
    codes->round(one->keys + at * d, s, d, (int8_t *)one->k_made + at * d, one->k_scales + at);
    codes->round(one->v_new + at * d, s, d, (int8_t *)one->v_made + at * d, one->v_scales + at);
}

// The part's new rows become halves.
static void halve_part(void *of, size_t part)
{
    call *one = of;
    const int64_t s = one->step.rows, d = one->step.head_dim, at = (int64_t)part * s * d;
    one->op->codes->halve(one->k_new + at, s, d, (uint16_t *)one->k_made + at);
    one->op->codes->halve(one->v_new + at, s, d, (uint16_t *)one->v_made + at);
}

// Attention once a part's new rows are made by `make`.
static OrtStatus *attend(OrtKernelContext *context, call *one, void (*make)(void *, size_t))
{
    const avl_attention_op *op = one->op;
    const size_t parts = (size_t)(one->step.batch * one->step.kv_heads);
    OrtStatus *status = NULL;
    // Of a step it is too little to wake other threads for.
    for (size_t part = 0; one->step.rows == 1 && part < parts; part++)
        make(one, part);
    if (one->step.rows > 1)
        status = avl_api->KernelContext_ParallelFor(context, make, parts, 0, one);
    one->step.codes = &one->codes;
    if (status)
        return status;
    return one->step.rows == 1 ? avl_compute_step(context, op, &one->step)
                               : avl_compute_rows(context, op, &one->step);
}

static OrtStatus *compute_codes(void *kernel, OrtKernelContext *context)
{
    call one;
    OrtStatus *status = begin(context, kernel, 8, &one);
    if (status)
        return status;
    const avl_step *step = &one.step;
    const int64_t each = step->batch * step->rows * step->head_dim;
    one.queries = malloc((size_t)(each * (step->heads + step->kv_heads)) * sizeof(float));
    if (!one.queries)
        return avl_failed("expected memory for rotated rows, found none");
    one.keys = one.queries + each * step->heads;
    one.step.q = one.queries;
    status = attend(context, &one, code_part);
    free(one.queries);
    return status;
}

static OrtStatus *compute_halves(void *kernel, OrtKernelContext *context)
{
    call one;
    OrtStatus *status = begin(context, kernel, 16, &one);
    if (status)
        return status;
    one.step.q = one.q;
    return attend(context, &one, halve_part);
}

#define CODES(CREATE, NAME, BIASED)                                                                \
    {                                                                                              \
        AVL_OP(CREATE, compute_codes, avl_destroy_attention), NAME,                                \
            MOST_INPUTS + BIASED * BIASES, MOST_OUTPUTS, CODE_TYPES, CODES_MADE, BIASED            \
    }
#define HALVES(CREATE, NAME, BIASED)                                                               \
    {                                                                                              \
        AVL_OP(CREATE, compute_halves, avl_destroy_attention), NAME,                               \
            FEWEST_INPUTS + BIASED * BIASES, FEWEST_OUTPUTS, HALF_TYPES, HALVES_MADE, BIASED       \
    }
#define KEPT(CREATE)                                                                               \
    {                                                                                              \
        CODES(CREATE, "QuantizedCacheAttention", 0), HALVES(CREATE, "HalfCacheAttention", 0),      \
            CODES(CREATE, "BiasedQuantizedCacheAttention", 1),                                     \
            HALVES(CREATE, "BiasedHalfCacheAttention", 1)                                          \
    }

const avl_op avl_kept_attention[AVL_KEPT] = KEPT(avl_create_attention);
const avl_op avl_kept_attention_on_tiles[AVL_KEPT] = KEPT(avl_create_attention_on_tiles);
