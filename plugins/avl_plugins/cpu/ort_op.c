#include "ort_op.h"

const OrtApi *avl_api;

static const avl_op *of(const OrtCustomOp *op) { return (const avl_op *)op; }

const char *avl_op_name(const OrtCustomOp *op) { return of(op)->name; }
const char *avl_op_provider(const OrtCustomOp *op) { return (void)op, (const char *)NULL; }
int avl_op_input_type(const OrtCustomOp *op, size_t index) { return of(op)->input_types[index]; }
size_t avl_op_inputs(const OrtCustomOp *op) { return of(op)->inputs; }
int avl_op_output_type(const OrtCustomOp *op, size_t index)
{
    return of(op)->output_types ? of(op)->output_types[index] : ORT_FLOAT;
}
size_t avl_op_outputs(const OrtCustomOp *op) { return of(op)->outputs; }
int avl_op_required(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }
int avl_op_one(const OrtCustomOp *op) { return (void)op, 1; }

OrtStatus *avl_failed(const char *expected) { return avl_api->CreateStatus(ORT_FAIL, expected); }

static OrtStatus *read(const OrtValue *value, avl_tensor *to)
{
    OrtTensorTypeAndShapeInfo *info;
    OrtStatus *status = avl_api->GetTensorTypeAndShape(value, &info);
    if (status)
        return status;
    status = avl_api->GetDimensionsCount(info, &to->rank);
    if (!status && to->rank > AVL_MOST_DIMS)
        status = avl_failed("expected inputs of the schema's rank");
    if (!status)
        status = avl_api->GetDimensions(info, to->dims, to->rank);
    avl_api->ReleaseTensorTypeAndShapeInfo(info);
    return status ? status : avl_api->GetTensorMutableData((OrtValue *)value, (void **)&to->data);
}

OrtStatus *avl_input(const OrtKernelContext *context, size_t index, avl_tensor *to)
{
    const OrtValue *value;
    OrtStatus *status = avl_api->KernelContext_GetInput(context, index, &value);
    return status ? status : read(value, to);
}

OrtStatus *avl_inputs(const OrtKernelContext *context, const size_t *ranks, size_t count,
                      avl_tensor *to)
{
    OrtStatus *status = NULL;
    for (size_t i = 0; !status && i < count; i++) {
        status = avl_input(context, i, &to[i]);
        if (!status && to[i].rank != ranks[i])
            status = avl_failed("expected inputs of the schema's rank");
    }
    return status;
}

OrtStatus *avl_bias(const OrtKernelContext *context, const avl_linear_op *op, size_t weight,
                    int64_t outputs, avl_epilogue *to)
{
    avl_tensor bias;
    const size_t tensors = (op->op.inputs - 1) / avl_weights_of(op); // of a weight, the bias being the last
    OrtStatus *status = avl_input(context, (weight + 1) * tensors, &bias);
    if (!status && (bias.rank != 1 || bias.dims[0] != outputs))
        status = avl_failed("expected a bias with one number for each output of its weight");
    if (!status)
        *to = (avl_epilogue){bias.data, op->activation};
    return status;
}

static OrtStatus *read_type(const OrtValue *value, int *type)
{
    OrtTensorTypeAndShapeInfo *info;
    OrtStatus *status = avl_api->GetTensorTypeAndShape(value, &info);
    if (status)
        return status;
    status = avl_api->GetTensorElementType(info, type);
    avl_api->ReleaseTensorTypeAndShapeInfo(info);
    return status;
}

OrtStatus *avl_input_element(const OrtKernelContext *context, size_t index, int *type)
{
    const OrtValue *value;
    OrtStatus *status = avl_api->KernelContext_GetInput(context, index, &value);
    return status ? status : read_type(value, type);
}

OrtStatus *avl_constant(const OrtKernelInfo *info, size_t index, avl_tensor *to)
{
    int is_constant = 0;
    const OrtValue *value;
    OrtStatus *status =
        avl_api->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value);
    if (status)
        return status;
    if (!is_constant)
        return avl_failed("expected weights that are initializers");
    status = read_type(value, &to->type);
    return status ? status : read(value, to);
}

OrtStatus *avl_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank,
                      void *data)
{
    OrtValue *value;
    OrtStatus *status = avl_api->KernelContext_GetOutput(context, index, dims, rank, &value);
    return status ? status : avl_api->GetTensorMutableData(value, data);
}

enum { ROWS = 16 }; // of a task

typedef struct {
    avl_rows_task *task;
    int64_t rows;
    void *work;
} rows_work;

static void run_rows(void *of, size_t index)
{
    const rows_work *all = of;
    const int64_t first = (int64_t)index * ROWS, left = all->rows - first;
    all->task(all->work, first, first + (left < ROWS ? left : ROWS));
}

OrtStatus *avl_for_rows(OrtKernelContext *context, avl_rows_task *task, int64_t rows, void *work)
{
    if (rows <= ROWS) {
        task(work, 0, rows);
        return NULL;
    }
    rows_work all = {task, rows, work};
    return avl_api->KernelContext_ParallelFor(context, run_rows, (size_t)((rows + ROWS - 1) / ROWS), 0,
                                              &all);
}
