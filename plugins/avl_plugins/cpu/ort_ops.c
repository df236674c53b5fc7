// Registers the custom ops with a session.
#include "ort_op.h"
#include "processor.h"
#include "quantized_amx.h"

#define EXPORTED __attribute__((visibility("default")))

// Of the instructions that kernels are compiled for, those that run here; for people.
EXPORTED const char *avl_instructions(void)
{
    if (avl_has_vnni())
        return avl_amx && avl_has_amx() ? "AVX-512, VNNI, AMX" : "AVX-512, VNNI";
    return avl_has_avx512() ? "AVX-512" : avl_has_avx2() ? "AVX2" : "the compiler's own";
}

static OrtStatus *make_domain(OrtCustomOpDomain **domain)
{
    OrtStatus *status = avl_api->CreateCustomOpDomain("avl", domain);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_split_cache_step.op);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_split_cache_prompt.op);
#if defined(__x86_64__)
    // Elsewhere the ops' bodies are computed, for which ONNX Runtime has kernels.
    for (size_t i = 0; !status && avl_has_f16c() && i < AVL_PLAIN_LINEARS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_plain_linears[i].op);
    if (!status && avl_has_f16c())
        status = avl_api->CustomOpDomain_Add(*domain, &avl_logits_linear.op);
    for (size_t i = 0; !status && avl_has_vnni() && i < AVL_QUANTIZED_LINEARS; i++)
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
