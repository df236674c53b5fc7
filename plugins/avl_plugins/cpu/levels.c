#include "levels.h"

#include "processor.h"

#include <stddef.h>

const avl_prompt_tiles *avl_best_tiles(void) { return avl_has_amx() ? avl_prompt_amx : NULL; }

const avl_prompt_tiles *avl_best_mutual_tiles(void)
{
    const avl_prompt_tiles *best = avl_best_tiles();
    return best ? best : avl_has_vnni() ? avl_prompt_words : NULL;
}

const avl_prompt_tiles *avl_best_code_tiles(void)
{
    const avl_prompt_tiles *best = avl_best_tiles();
    return best ? best : avl_has_vnni() ? avl_prompt_codes : NULL;
}

#if defined(__x86_64__)

const avl_step_kernels *avl_best_step(void)
{
    return avl_has_avx512() ? &avl_step_avx512 : avl_has_f16c() ? &avl_step_avx2 : &avl_step_base;
}

const avl_few_kernels *avl_best_few(void)
{
    if (avl_has_amx() && avl_few_amx.chunks)
        return &avl_few_amx;
    if (avl_has_vnni() && avl_few_vnni.chunks)
        return &avl_few_vnni;
    return avl_has_avx512() ? &avl_few_avx512 : avl_has_avx2() ? &avl_few_avx2 : &avl_few_base;
}

const avl_prompt_kernels *avl_best_prompt(void)
{
    return avl_has_avx512() ? &avl_prompt_avx512
           : avl_has_avx2() ? &avl_prompt_avx2
                            : &avl_prompt_base;
}

const avl_code_kernels *avl_best_codes(void)
{
    return avl_has_avx512() ? &avl_codes_avx512 : avl_has_avx2() ? &avl_codes_avx2 : &avl_codes_base;
}

const avl_epilogues *avl_best_epilogues(void)
{
    return avl_has_avx512() ? &avl_epilogues_avx512
           : avl_has_avx2() ? &avl_epilogues_avx2
                            : &avl_epilogues_base;
}

avl_convolve *avl_best_convolve(void)
{
    return avl_has_avx512() ? avl_convolve_avx512
           : avl_has_avx2() ? avl_convolve_avx2
                            : avl_convolve_base;
}

avl_split_heads *avl_best_heads(void)
{
    return avl_has_avx512() ? avl_heads_avx512 : avl_has_avx2() ? avl_heads_avx2 : avl_heads_base;
}

avl_add_norm *avl_best_add_norm(void)
{
    return avl_has_avx512() ? avl_norm_avx512 : avl_has_avx2() ? avl_norm_avx2 : avl_norm_base;
}

const avl_delta_kernels *avl_best_delta(void)
{
    return avl_has_avx512() ? &avl_delta_avx512 : avl_has_avx2() ? &avl_delta_avx2 : &avl_delta_base;
}

const avl_likeness_kernels *avl_best_likeness(void)
{
    return avl_has_avx512() ? &avl_likeness_avx512
           : avl_has_avx2() ? &avl_likeness_avx2
                            : &avl_likeness_base;
}

const avl_screening *avl_best_linears(void)
{
    return avl_has_avx512() ? &avl_screen_avx512 : avl_has_f16c() ? &avl_screen_avx2 : NULL;
}

const avl_stacked_kernels *avl_best_stacked(void)
{
    return avl_has_avx512() ? &avl_stacked_avx512 : avl_has_f16c() ? &avl_stacked_avx2 : NULL;
}

const avl_quantized_kernels *avl_best_quantized(void)
{
    if (avl_has_vnni() && avl_quantized_avx512)
        return avl_quantized_avx512;
    if (avl_has_avx_vnni() && avl_quantized_avx_vnni)
        return avl_quantized_avx_vnni;
    return avl_has_f16c() ? avl_quantized_avx2 : NULL;
}

const avl_coded_kernels *avl_best_coded(void)
{
    if (avl_has_vnni() && avl_coded_avx512)
        return avl_coded_avx512;
    if (avl_has_avx_vnni() && avl_coded_avx_vnni)
        return avl_coded_avx_vnni;
    return avl_has_f16c() ? avl_coded_avx2 : NULL;
}

#else

const avl_step_kernels *avl_best_step(void) { return &avl_step_base; }
const avl_few_kernels *avl_best_few(void) { return &avl_few_base; }
const avl_prompt_kernels *avl_best_prompt(void) { return &avl_prompt_base; }
const avl_code_kernels *avl_best_codes(void) { return &avl_codes_base; }
const avl_epilogues *avl_best_epilogues(void) { return &avl_epilogues_base; }
avl_convolve *avl_best_convolve(void) { return avl_convolve_base; }
avl_split_heads *avl_best_heads(void) { return avl_heads_base; }
avl_add_norm *avl_best_add_norm(void) { return avl_norm_base; }
const avl_delta_kernels *avl_best_delta(void) { return &avl_delta_base; }
const avl_likeness_kernels *avl_best_likeness(void) { return &avl_likeness_base; }

#if defined(__aarch64__)

const avl_screening *avl_best_linears(void) { return &avl_screen_neon; }
const avl_stacked_kernels *avl_best_stacked(void) { return &avl_stacked_neon; }

const avl_quantized_kernels *avl_best_quantized(void)
{
    if (avl_has_i8mm() && avl_quantized_i8mm)
        return avl_quantized_i8mm;
    return avl_has_dotprod() && avl_quantized_dotprod ? avl_quantized_dotprod : avl_quantized_neon;
}

const avl_coded_kernels *avl_best_coded(void)
{
    return avl_has_dotprod() && avl_coded_dotprod ? avl_coded_dotprod : avl_coded_neon;
}

#else

const avl_screening *avl_best_linears(void) { return NULL; }
const avl_stacked_kernels *avl_best_stacked(void) { return NULL; }
const avl_quantized_kernels *avl_best_quantized(void) { return NULL; }
const avl_coded_kernels *avl_best_coded(void) { return NULL; }

#endif

#endif
