// The gated delta rule (schema/states.py): what its custom op computes.
#ifndef AVL_DELTA_H
#define AVL_DELTA_H

#include <stdint.h>

// q, k [B, S, Hk, Dk]; v, out [B, S, Hv, Dv]; decay, beta [B, S, Hv]; state, state_new
// [B, Hv, Dk, Dv]. The states do not overlap.
typedef struct avl_delta {
    int64_t batch, rows, key_heads, heads, key_size, value_size;
    const float *q, *k, *v, *decay, *beta, *state;
    float *out, *state_new;
} avl_delta;

// What delta.c is compiled to for one level of the processor's instructions. A task is a value head
// of a sequence, of B * Hv, in any order and in any threads at once; `room` is its own, of so many
// floats as the function of that name says.
typedef struct avl_delta_kernels {
    int64_t (*room)(const avl_delta *of);
    void (*run)(const avl_delta *of, int64_t task, float *room);
} avl_delta_kernels;

extern const avl_delta_kernels avl_delta_base, avl_delta_avx2, avl_delta_avx512;

#endif
