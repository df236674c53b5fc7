// Registers the custom ops with a session.
#include "levels.h"
#include "ort_op.h"
#include "processor.h"
#include "quantized_amx.h"

#define EXPORTED __attribute__((visibility("default")))

// Of the instructions that kernels are compiled for, those that run here; for people.
EXPORTED const char *avl_instructions(void)
{
#if defined(__aarch64__)
    return avl_has_i8mm() ? "NEON, dotprod, i8mm" : avl_has_dotprod() ? "NEON, dotprod" : "NEON";
#else
    if (avl_has_vnni())
        return avl_amx && avl_has_amx() ? "AVX-512, VNNI, AMX" : "AVX-512, VNNI";
    return avl_has_avx512() ? "AVX-512" : avl_has_avx2() ? "AVX2" : "the compiler's own";
#endif
}

// Whether there are kernels of linears here; elsewhere the ops' bodies are computed, for which ONNX
// Runtime has kernels.
static int has_plain(void) { return avl_best_linears() != NULL; }
static int has_quantized(void) { return avl_has_vnni(); }

static OrtStatus *make_domain(OrtCustomOpDomain **domain, int plain, int quantized)
{
    OrtStatus *status = avl_api->CreateCustomOpDomain("avl", domain);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_split_cache_step.op);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_split_cache_prompt.op);
    for (size_t i = 0; !status && plain && i < AVL_PLAIN_LINEARS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_plain_linears[i].op);
    if (!status && plain)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_logits_linear.op);
#if defined(__x86_64__)
    for (size_t i = 0; !status && quantized && i < AVL_QUANTIZED_LINEARS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_quantized_linears[i].op);
#else
    (void)quantized;
#endif
    return status;
}

// Called by SessionOptions.register_custom_ops_library.
EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base)
{
    static OrtCustomOpDomain *domains[2][2]; // for as long as the library is loaded
    avl_api = base->GetApi(ORT_API_VERSION);
    if (!avl_api)
        return base->GetApi(1)->CreateStatus(ORT_FAIL, "expected ONNX Runtime 1.17 or newer");
    const int plain = has_plain(), quantized = has_quantized(); // the environment has a say
    OrtCustomOpDomain **domain = &domains[plain != 0][quantized != 0];
    if (!*domain) {
        OrtCustomOpDomain *made;
        OrtStatus *status = make_domain(&made, plain, quantized);
        if (status)
            return status;
        *domain = made;
    }
    return avl_api->AddCustomOpDomain(options, *domain);
}
