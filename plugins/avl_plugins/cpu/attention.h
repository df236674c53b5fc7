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
    float *scratch; // avl_step_scratch floats
} avl_step;

int64_t avl_step_scratch(const avl_step *step);

// A step is avl_step_read for every index below avl_step_reads, in any order and in any threads at
// once, then avl_step_merge likewise for every index below B * Hkv.
int64_t avl_step_reads(const avl_step *step);
void avl_step_read(const avl_step *step, int64_t index);
void avl_step_merge(const avl_step *step, int64_t index);

#endif
