// Registers the custom ops with a session.
#include "levels.h"
#include "linear_amx.h"
#include "ort_op.h"
#include "processor.h"

#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

// Whether there are kernels for AMX that run here.
EXPORTED int avl_runs_amx(void) { return avl_amx && avl_has_amx(); }

// Of the instructions that kernels are compiled for, those that run here; for people.
EXPORTED const char *avl_instructions(void)
{
#if defined(__aarch64__)
    return avl_has_i8mm() ? "NEON, dotprod, i8mm" : avl_has_dotprod() ? "NEON, dotprod" : "NEON";
#else
    if (avl_has_vnni())
        return avl_runs_amx() ? "AVX-512, VNNI, AMX" : "AVX-512, VNNI";
    if (avl_has_avx512())
        return avl_has_avx_vnni() ? "AVX-512, AVX-VNNI" : "AVX-512";
    if (avl_has_avx2())
        return avl_has_avx_vnni() ? "AVX2, AVX-VNNI" : "AVX2";
    return "the compiler's own";
#endif
}

// Which ops a session has: those of linears where there are kernels (elsewhere the ops' bodies are
// computed, for which ONNX Runtime has some), and those on tiles where its configuration asks for
// bf16. Attention of encoders is for AVX-512 alone: without it the usual body is as fast.
enum { PLAIN = 1, QUANTIZED = 2, TILED_ATTENTION = 4, TILED_LINEARS = 8, MUTUAL = 16, CHOICES = 32 };

// Adds `choice` if an entry of the configuration, which is "fp32" or "bf16", is the latter.
static OrtStatus *add_if_bf16(const OrtSessionOptions *options, const char *entry, int choice,
                              int *chosen)
{
    char value[8] = "fp32";
    size_t size = sizeof value;
    int has = 0;
    OrtStatus *status = avl_api->HasSessionConfigEntry(options, entry, &has);
    if (!status && has)
        status = avl_api->GetSessionConfigEntry(options, entry, value, &size);
    if (!status && strcmp(value, "fp32") && strcmp(value, "bf16"))
        status = avl_failed("expected a session's entries of avl to be fp32 or bf16");
    if (!strcmp(value, "bf16"))
        *chosen |= choice;
    return status;
}

// The environment has a say, so it is asked for every session.
static OrtStatus *choose(const OrtSessionOptions *options, int *chosen)
{
    *chosen = (avl_best_linears() ? PLAIN : 0) | (avl_best_quantized() ? QUANTIZED : 0) |
              (avl_has_avx512() ? MUTUAL : 0);
    OrtStatus *status = add_if_bf16(options, "avl.attention", TILED_ATTENTION, chosen);
    return status ? status : add_if_bf16(options, "avl.linears", TILED_LINEARS, chosen);
}

static OrtStatus *make_domain(OrtCustomOpDomain **domain, int chosen)
{
    const avl_op *prompt =
        chosen & TILED_ATTENTION ? &avl_split_cache_prompt_on_tiles : &avl_split_cache_prompt;
    const avl_linear_op *linears =
        chosen & TILED_LINEARS ? avl_plain_linears_on_tiles : avl_plain_linears;
    const avl_op *kept =
        chosen & TILED_ATTENTION ? avl_kept_attention_on_tiles : avl_kept_attention;
    const avl_op *mutual =
        chosen & TILED_ATTENTION ? avl_mutual_attention_on_tiles : avl_mutual_attention;
    OrtStatus *status = avl_api->CreateCustomOpDomain("avl", domain);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_split_cache_step.op);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &prompt->op);
    for (size_t i = 0; !status && i < AVL_BIASED; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_biased[i].op);
    for (size_t i = 0; !status && i < AVL_KEPT; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &kept[i].op);
    for (size_t i = 0; !status && i < AVL_STATES; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_state_ops[i].op);
    for (size_t i = 0; !status && i < AVL_HEADS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_head_ops[i].op);
    if (!status)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_add_rms_norm.op);
    for (size_t i = 0; !status && chosen & MUTUAL && i < AVL_MUTUAL; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &mutual[i].op);
    for (size_t i = 0; !status && chosen & PLAIN && i < AVL_PLAIN_LINEARS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &linears[i].op.op);
    if (!status && chosen & PLAIN)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_logits_linear.op);
    if (!status && chosen & PLAIN)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_sparse_experts.op);
    const int is_coded = chosen & PLAIN && chosen & QUANTIZED; // gates are of the former's kernels
    for (size_t i = 0; !status && is_coded && i < AVL_CODED_EXPERTS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_coded_experts[i].op);
    for (size_t i = 0; !status && chosen & QUANTIZED && i < AVL_QUANTIZED_LINEARS; i++)
        status = avl_api->CustomOpDomain_Add(*domain, &avl_quantized_linears[i].op.op);
    return status;
}

// Called by SessionOptions.register_custom_ops_library.
EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base)
{
    static OrtCustomOpDomain *domains[CHOICES]; // for as long as the library is loaded
    avl_api = base->GetApi(ORT_API_VERSION);
    if (!avl_api)
        return base->GetApi(1)->CreateStatus(ORT_FAIL, "expected ONNX Runtime 1.17 or newer");
    int chosen;
    OrtStatus *status = choose(options, &chosen);
    if (!status && !domains[chosen]) {
        OrtCustomOpDomain *made;
        status = make_domain(&made, chosen);
        if (!status)
            domains[chosen] = made;
    }
    return status ? status : avl_api->AddCustomOpDomain(options, domains[chosen]);
}
