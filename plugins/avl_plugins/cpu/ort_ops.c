// SplitCacheStep as a custom op of ONNX Runtime's CPU provider.
#include "step.h"

#include <stdlib.h>

#define EXPORTED __attribute__((visibility("default")))

enum { Q, K_NEW, V_NEW, K_ACTIVE, V_ACTIVE, ACTIVE_LEN, K_PARKED, V_PARKED, PARKED_LEN, WEIGHTS,
       INPUTS };
enum { OUT, MASS_ACTIVE, MASS_PARKED, MASS_NEW, OUTPUTS };

static const int RANKS[INPUTS] = {4, 4, 4, 4, 4, 1, 4, 4, 1, 3};

// What a session sees first holds for all: one process has one ONNX Runtime.
static const OrtApi *api;
static const avl_step_kernels *kernels;

// The best level that this processor has.
static const avl_step_kernels *best_kernels(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return &avl_step_base;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq"))
        return &avl_step_avx2;
    return &avl_step_avx512;
#else
    return &avl_step_base;
#endif
}

static OrtStatus *input(OrtKernelContext *context, size_t index, const void **data, int64_t dims[4])
{
    const OrtValue *value;
    OrtStatus *status = api->KernelContext_GetInput(context, index, &value);
    if (status)
        return status;
    OrtTensorTypeAndShapeInfo *info;
    if ((status = api->GetTensorTypeAndShape(value, &info)))
        return status;
    size_t rank = 0;
    status = api->GetDimensionsCount(info, &rank);
    if (!status && rank != (size_t)RANKS[index])
        status = api->CreateStatus(ORT_FAIL, "SplitCacheStep: expected inputs of the schema's rank");
    if (!status)
        status = api->GetDimensions(info, dims, rank);
    api->ReleaseTensorTypeAndShapeInfo(info);
    if (status)
        return status;
    return api->GetTensorMutableData((OrtValue *)value, (void **)data);
}

static OrtStatus *output(OrtKernelContext *context, size_t index, int64_t a, int64_t b, int64_t c,
                         int64_t d, float **data)
{
    const int64_t dims[4] = {a, b, c, d};
    OrtValue *value;
    OrtStatus *status = api->KernelContext_GetOutput(context, index, dims, 4, &value);
    if (status)
        return status;
    return api->GetTensorMutableData(value, (void **)data);
}

static int fits(const avl_step *step, int64_t dims[INPUTS][4])
{
    const int64_t b = step->batch, h = step->kv_heads, d = step->head_dim;
    const int64_t expected[INPUTS][4] = {
        [Q] = {b, step->heads, 1, d}, [K_NEW] = {b, h, 1, d}, [V_NEW] = {b, h, 1, d},
        [K_ACTIVE] = {b, h, step->active, d}, [V_ACTIVE] = {b, h, step->active, d},
        [ACTIVE_LEN] = {b}, [K_PARKED] = {b, h, step->parked, d},
        [V_PARKED] = {b, h, step->parked, d}, [PARKED_LEN] = {b},
        [WEIGHTS] = {b, step->weightings, 1}};
    for (int i = 0; i < INPUTS; i++)
        for (int axis = 0; axis < RANKS[i]; axis++)
            if (dims[i][axis] != expected[i][axis])
                return 0;
    for (int64_t row = 0; row < b; row++)
        if (step->active_len[row] < 0 || step->active_len[row] > step->active ||
            step->parked_len[row] < 0 || step->parked_len[row] > step->parked)
            return 0;
    return h > 0 && step->heads % h == 0;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    int64_t dims[INPUTS][4];
    const void *data[INPUTS];
    OrtStatus *status;
    for (size_t i = 0; i < INPUTS; i++)
        if ((status = input(context, i, &data[i], dims[i])))
            return status;
    avl_step step = {
        .batch = dims[Q][0], .heads = dims[Q][1], .kv_heads = dims[K_NEW][1],
        .head_dim = dims[Q][3], .active = dims[K_ACTIVE][2], .parked = dims[K_PARKED][2],
        .weightings = dims[WEIGHTS][1], .scale = *(const float *)kernel,
        .q = data[Q], .k_new = data[K_NEW], .v_new = data[V_NEW], .k_active = data[K_ACTIVE],
        .v_active = data[V_ACTIVE], .k_parked = data[K_PARKED], .v_parked = data[V_PARKED],
        .row_weights = data[WEIGHTS], .active_len = data[ACTIVE_LEN],
        .parked_len = data[PARKED_LEN]};
    if (!fits(&step, dims))
        return api->CreateStatus(ORT_FAIL, "SplitCacheStep: expected one new row, lengths within "
                                           "capacities and shapes that agree (schema.py)");
    const int64_t b = step.batch, h = step.kv_heads, r = step.weightings;
    if ((status = output(context, OUT, b, step.heads, 1, step.head_dim, &step.out)) ||
        (status = output(context, MASS_ACTIVE, b, h, r, step.active, &step.mass_active)) ||
        (status = output(context, MASS_PARKED, b, h, r, step.parked, &step.mass_parked)) ||
        (status = output(context, MASS_NEW, b, h, r, 1, &step.mass_new)))
        return status;
    step.scratch = malloc((size_t)kernels->scratch(&step) * sizeof(float));
    if (!step.scratch)
        return api->CreateStatus(ORT_FAIL, "SplitCacheStep: expected memory for scores, found none");
    status = avl_run_step(api, context, kernels, &step);
    free(step.scratch);
    return status;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused_api, const OrtKernelInfo *info,
                         void **kernel)
{
    (void)op, (void)unused_api;
    float *scale = malloc(sizeof *scale);
    *kernel = scale;
    if (!scale)
        return api->CreateStatus(ORT_FAIL, "SplitCacheStep: expected memory, found none");
    return api->KernelInfoGetAttribute_float(info, "scale", scale);
}

static void destroy(void *kernel) { free(kernel); }
static const char *name(const OrtCustomOp *op) { return (void)op, "SplitCacheStep"; }
static const char *provider(const OrtCustomOp *op) { return (void)op, (const char *)NULL; }
static size_t inputs(const OrtCustomOp *op) { return (void)op, (size_t)INPUTS; }
static size_t outputs(const OrtCustomOp *op) { return (void)op, (size_t)OUTPUTS; }
static int input_type(const OrtCustomOp *op, size_t i)
{
    return (void)op, i == ACTIVE_LEN || i == PARKED_LEN ? ORT_INT64 : ORT_FLOAT;
}
static int output_type(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
static int zero_of(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int one(const OrtCustomOp *op) { return (void)op, 1; }

static const OrtCustomOp STEP = {
    .version = ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider,
    .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = output_type,
    .GetOutputTypeCount = outputs, .KernelDestroy = destroy, .GetInputCharacteristic = zero_of,
    .GetOutputCharacteristic = zero_of, .GetInputMemoryType = zero_of,
    .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one,
    .GetVariadicOutputMinArity = one, .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = create,
    .KernelComputeV2 = compute, .GetStartVersion = one, .GetEndVersion = one};

// Called by SessionOptions.register_custom_ops_library.
EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base)
{
    static OrtCustomOpDomain *domain; // for as long as the library is loaded
    api = base->GetApi(ORT_API_VERSION);
    if (!api)
        return base->GetApi(1)->CreateStatus(ORT_FAIL, "expected ONNX Runtime 1.17 or newer");
    kernels = best_kernels();
    if (!domain) {
        OrtCustomOpDomain *made;
        OrtStatus *status = api->CreateCustomOpDomain("avl", &made);
        if (!status)
            status = api->CustomOpDomain_Add(made, &STEP);
        if (status)
            return status;
        domain = made;
    }
    return api->AddCustomOpDomain(options, domain);
}
