// RotaryHeads, NormedRotaryHeads and JoinedHeads as custom ops of ONNX Runtime's CPU provider.
#include "levels.h"
#include "ort_op.h"

#include <stdlib.h>
#include <string.h>

enum { Q, K, V, COS, SIN, PLAIN_INPUTS, Q_NORM = PLAIN_INPUTS, K_NORM, MOST_INPUTS };

static const int TYPES[MOST_INPUTS] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,
                                       ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const size_t RANKS[MOST_INPUTS] = {2, 2, 2, 3, 3, 1, 1};

typedef struct {
    avl_split_heads *split;
    int64_t head_dim, interleaved;
    float epsilon;
    size_t inputs;
} rotary_kernel;

typedef struct {
    avl_split_heads *split;
    avl_heads all;
} split_work;

static void split_rows(void *of, int64_t first, int64_t end)
{
    const split_work *work = of;
    work->split(&work->all, first, end);
}

static int fits(const rotary_kernel *op, const avl_tensor *given)
{
    const int64_t *cos = given[COS].dims, rows = cos[0] * cos[1], size = op->head_dim;
    for (int i = Q; i <= V; i++)
        if (given[i].dims[0] != rows || given[i].dims[1] % size)
            return 0;
    for (size_t i = Q_NORM; i < op->inputs; i++)
        if (given[i].dims[0] != size)
            return 0;
    return given[K].dims[1] == given[V].dims[1] && 2 * cos[2] <= size &&
           !memcmp(cos, given[SIN].dims, 3 * sizeof *cos);
}

static OrtStatus *rotate(void *kernel, OrtKernelContext *context)
{
    const rotary_kernel *op = kernel;
    avl_tensor given[MOST_INPUTS];
    OrtStatus *status = avl_inputs(context, RANKS, op->inputs, given);
    if (status)
        return status;
    if (!fits(op, given))
        return avl_failed("expected shapes that agree (schema/heads.py)");
    const int64_t *cos = given[COS].dims;
    split_work work = {
        op->split,
        {.batch = cos[0], .rows = cos[1], .head_dim = op->head_dim, .turned = cos[2],
         .is_interleaved = op->interleaved != 0, .epsilon = op->epsilon, .cos = given[COS].data,
         .sin = given[SIN].data}};
    const int has_norms = op->inputs > PLAIN_INPUTS;
    for (int i = Q; !status && i <= V; i++) {
        avl_heads_of *of = &work.all.of[i];
        *of = (avl_heads_of){.heads = given[i].dims[1] / op->head_dim, .is_turned = i != V,
                             .norm = has_norms && i != V ? given[Q_NORM + i].data : NULL,
                             .rows = given[i].data};
        const int64_t dims[] = {cos[0], of->heads, cos[1], op->head_dim};
        status = avl_output(context, (size_t)i, dims, 4, &of->to);
    }
    return status ? status : avl_for_rows(context, split_rows, cos[0] * cos[1], &work);
}

static OrtStatus *create_rotary(const OrtCustomOp *op, const OrtApi *unused_api,
                                const OrtKernelInfo *info, void **kernel)
{
    (void)unused_api;
    rotary_kernel *made = calloc(1, sizeof *made);
    if (!made)
        return avl_failed("expected memory, found none");
    made->split = avl_best_heads();
    made->inputs = ((const avl_op *)op)->inputs;
    OrtStatus *status =
        avl_api->KernelInfoGetAttribute_int64(info, "head_size", &made->head_dim);
    if (!status)
        status = avl_api->KernelInfoGetAttribute_int64(info, "interleaved", &made->interleaved);
    if (!status && made->inputs > PLAIN_INPUTS)
        status = avl_api->KernelInfoGetAttribute_float(info, "epsilon", &made->epsilon);
    if (!status && made->head_dim < 1)
        status = avl_failed("expected a head size of 1 or more");
    if (status)
        free(made);
    else
        *kernel = made;
    return status;
}

typedef struct {
    int64_t heads, rows, head_dim;
    const float *from;
    float *to;
} join_work;

static void join_rows(void *of, int64_t first, int64_t end)
{
    const join_work *work = of;
    for (int64_t row = first; row < end; row++) {
        const int64_t b = row / work->rows, s = row % work->rows;
        for (int64_t h = 0; h < work->heads; h++)
            memcpy(work->to + (row * work->heads + h) * work->head_dim,
                   work->from + ((b * work->heads + h) * work->rows + s) * work->head_dim,
                   (size_t)work->head_dim * sizeof(float));
    }
}

static OrtStatus *join(void *unused_kernel, OrtKernelContext *context)
{
    static const size_t RANK[] = {4};
    (void)unused_kernel;
    avl_tensor heads;
    OrtStatus *status = avl_inputs(context, RANK, 1, &heads);
    if (status)
        return status;
    join_work work = {.heads = heads.dims[1], .rows = heads.dims[2], .head_dim = heads.dims[3],
                      .from = heads.data};
    const int64_t dims[] = {heads.dims[0] * work.rows, work.heads * work.head_dim};
    status = avl_output(context, 0, dims, 2, &work.to);
    return status ? status : avl_for_rows(context, join_rows, dims[0], &work);
}

static OrtStatus *create_join(const OrtCustomOp *unused_op, const OrtApi *unused_api,
                              const OrtKernelInfo *unused_info, void **kernel)
{
    (void)unused_op, (void)unused_api, (void)unused_info;
    *kernel = malloc(1); // there is nothing to remember, but NULL is no kernel
    return *kernel ? NULL : avl_failed("expected memory, found none");
}

const avl_op avl_head_ops[AVL_HEADS] = {
    {AVL_OP(create_rotary, rotate, free), "RotaryHeads", PLAIN_INPUTS, AVL_SPLIT, TYPES, NULL, 0},
    {AVL_OP(create_rotary, rotate, free), "NormedRotaryHeads", MOST_INPUTS, AVL_SPLIT, TYPES, NULL,
     0},
    {AVL_OP(create_join, join, free), "JoinedHeads", 1, 1, TYPES, NULL, 0},
};
