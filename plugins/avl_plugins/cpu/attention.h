// Attention of new rows over a split cache; of one it is what the kernel of SplitCacheStep
// computes.
#ifndef AVL_ATTENTION_H
#define AVL_ATTENTION_H

#include "codes.h"

#include <stdint.h>

// Arrays of a step, as in schema/ops.py, without gaps between rows; `rows` is S, 1 in a decode step:
// q, out [B, H, S, D]; k_new, v_new [B, Hkv, S, D]; *_active [B, Hkv, A, D];
// *_parked [B, Hkv, P, D]; *_len [B]; row_weights [B, R, S]; mass_active [B, Hkv, R, A];
// mass_parked [B, Hkv, R, P]; mass_new [B, Hkv, R, S]; bias_active [B, `unlike`, S, A], bias_parked
// [B, 1, S, P] and bias_new [B, 1, S, S], or NULL where none is added to scores.
typedef struct avl_step {
    int64_t batch, heads, kv_heads, rows, head_dim, active, parked, weightings;
    float scale;
    const float *q, *k_new, *v_new, *k_active, *v_active, *k_parked, *v_parked, *row_weights;
    const float *bias_active, *bias_parked, *bias_new;
    int64_t unlike; // KV heads with a bias of their own: all, or 1
    const int64_t *active_len, *parked_len;
    float *out, *mass_active, *mass_parked, *mass_new;
    float *scratch; // of a decode step: floats, as many as `scratch` below says
    const avl_codes *codes; // of fewer bits, in place of all keys and values above; or NULL
    // Not 0 if new rows are an encoder's, which see so many new keys, and there are no others; q and
    // out are [B, S, H, D], k_new and v_new [B, mutual, H, D].
    int64_t mutual;
} avl_step;

// Where a part's biases begin of active rows.
static inline int64_t avl_bias_at(const avl_step *step, int64_t part)
{
    const int64_t sequence = part / step->kv_heads, head = part % step->kv_heads;
    const int64_t bias = sequence * step->unlike + (step->unlike > 1 ? head : 0);
    return bias * step->rows * step->active;
}

// What attention.c is compiled to for one level of the processor's instructions.
//
// A decode step is `score_keys` and then `sum_values` for every chunk, and then `merge` for every
// part; if it has masses, `sum_masses` for every part is after the keys of all its chunks. Chunks
// are those below `chunks`, parts those below B * Hkv, a KV head of a sequence each; both in the
// order of sequences, and otherwise in any order and in any threads at once.
typedef struct avl_step_kernels {
    int64_t (*scratch)(const avl_step *step);
    int64_t (*chunks)(const avl_step *step);
    void (*score_keys)(const avl_step *step, int64_t chunk);
    void (*sum_values)(const avl_step *step, int64_t chunk);
    void (*sum_masses)(const avl_step *step, int64_t part);
    void (*merge)(const avl_step *step, int64_t part);
    // Swaps rows leaving[i] of `active` with rows entering[i] of `parked`, of so many bytes each, for
    // i < count.
    void (*swap_rows)(char *active, char *parked, int64_t bytes, const int64_t *leaving,
                      const int64_t *entering, int64_t count);
} avl_step_kernels;

// Calls a function with the size of a head behind its other arguments; loops over the usual ones are
// unrolled, as a row is too short for a loop's overhead.
#define AVL_FOR_SIZE(FUNCTION, SIZE_OF_HEAD, ...)                                                  \
    switch (SIZE_OF_HEAD) {                                                                        \
    case 64: FUNCTION(__VA_ARGS__, 64); break;                                                     \
    case 128: FUNCTION(__VA_ARGS__, 128); break;                                                   \
    default: FUNCTION(__VA_ARGS__, SIZE_OF_HEAD);                                                  \
    }

// build.py compiles the levels above the base for x86-64 alone: AVX2 with FMA, and AVX-512.
extern const avl_step_kernels avl_step_base, avl_step_avx2, avl_step_avx512;

#endif
