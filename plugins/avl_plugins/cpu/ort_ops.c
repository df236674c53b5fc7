// Registers the custom ops with a session.
#include "ort_op.h"

#define EXPORTED __attribute__((visibility("default")))

// Whether this processor has what quantized.c is compiled for; without, the op's body is computed,
// for which ONNX Runtime has kernels.
static int has_vnni(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2");
#else
    return 0;
#endif
}

static OrtStatus *make_domain(OrtCustomOpDomain **domain)
{
    OrtStatus *status = avl_api->CreateCustomOpDomain("avl", domain);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_split_cache_step.op);
#if defined(__x86_64__)
    for (size_t i = 0; !status && has_vnni() && i < AVL_QUANTIZED_LINEARS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_quantized_linears[i].op);
#endif
    return status;
}

// Called by SessionOptions.register_custom_ops_library.
EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base)
{
    static OrtCustomOpDomain *domain; // for as long as the library is loaded
    avl_api = base->GetApi(ORT_API_VERSION);
    if (!avl_api)
        return base->GetApi(1)->CreateStatus(ORT_FAIL, "expected ONNX Runtime 1.17 or newer");
    if (!domain) {
        OrtCustomOpDomain *made;
        OrtStatus *status = make_domain(&made);
        if (status)
            return status;
        domain = made;
    }
    return avl_api->AddCustomOpDomain(options, domain);
}
