// AddRMSNorm as a custom op of ONNX Runtime's CPU provider.
#include "levels.h"
#include "ort_op.h"

#include <stdlib.h>
#include <string.h>

enum { A, B, WEIGHT, INPUTS };
enum { SUM, NORMED, OUTPUTS };

static const int TYPES[INPUTS] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};
static const size_t RANKS[INPUTS] = {2, 2, 1};

typedef struct {
    avl_add_norm *add_norm;
    float epsilon;
} norm_kernel;

typedef struct {
    avl_add_norm *add_norm;
    avl_sums all;
} norm_work;

static void norm_rows(void *of, int64_t first, int64_t end)
{
    const norm_work *work = of;
    work->add_norm(&work->all, first, end);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const norm_kernel *op = kernel;
    avl_tensor given[INPUTS];
    OrtStatus *status = avl_inputs(context, RANKS, INPUTS, given);
    if (status)
        return status;
    const int64_t *dims = given[A].dims;
    if (memcmp(dims, given[B].dims, 2 * sizeof *dims) || given[WEIGHT].dims[0] != dims[1])
        return avl_failed("expected shapes that agree (schema/norms.py)");
    norm_work work = {op->add_norm,
                      {.width = dims[1], .epsilon = op->epsilon, .a = given[A].data,
                       .b = given[B].data, .weight = given[WEIGHT].data}};
    status = avl_output(context, SUM, dims, 2, &work.all.sum);
    if (!status)
        status = avl_output(context, NORMED, dims, 2, &work.all.normed);
    return status ? status : avl_for_rows(context, norm_rows, dims[0], &work);
}

static OrtStatus *create(const OrtCustomOp *unused_op, const OrtApi *unused_api,
                         const OrtKernelInfo *info, void **kernel)
{
    (void)unused_op, (void)unused_api;
    norm_kernel *made = malloc(sizeof *made);
    if (!made)
        return avl_failed("expected memory, found none");
    made->add_norm = avl_best_add_norm();
    OrtStatus *status = avl_api->KernelInfoGetAttribute_float(info, "epsilon", &made->epsilon);
    if (status)
        free(made);
    else
        *kernel = made;
    return status;
}

const avl_op avl_add_rms_norm = {AVL_OP(create, compute, free), "AddRMSNorm", INPUTS, OUTPUTS, TYPES,
                                 NULL, 0};
