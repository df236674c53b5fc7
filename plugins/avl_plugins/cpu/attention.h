// Attention of one new row over a split cache: what the kernel of SplitCacheStep computes.
#ifndef AVL_ATTENTION_H
#define AVL_ATTENTION_H

#include <stdint.h>

// Arrays of a step, as in schema.py with S = 1, without gaps between rows:
// q, out [B, H, D]; k_new, v_new [B, Hkv, D]; *_active [B, Hkv, A, D]; *_parked [B, Hkv, P, D];
// *_len [B]; row_weights [B, R]; mass_active [B, Hkv, R, A]; mass_parked [B, Hkv, R, P];
// mass_new [B, Hkv, R].
typedef struct avl_step {
    int64_t batch, heads, kv_heads, head_dim, active, parked, weightings;
    float scale;
    const float *q, *k_new, *v_new, *k_active, *v_active, *k_parked, *v_parked, *row_weights;
    const int64_t *active_len, *parked_len;
    float *out, *mass_active, *mass_parked, *mass_new;
    float *scratch; // floats, as many as `scratch` below says
} avl_step;

// What attention.c is compiled to for one level of the processor's instructions.
typedef struct avl_step_kernels {
    int64_t (*scratch)(const avl_step *step);
    // A step is `read` for every index below `reads`, in any order and in any threads at once, then
    // `merge` likewise for every index below B * Hkv.
    int64_t (*reads)(const avl_step *step);
    void (*read)(const avl_step *step, int64_t index);
    void (*merge)(const avl_step *step, int64_t index);
} avl_step_kernels;

// build.py compiles the levels above the base for x86-64 alone: AVX2 with FMA, and AVX-512.
extern const avl_step_kernels avl_step_base, avl_step_avx2, avl_step_avx512;

#endif
