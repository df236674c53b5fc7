// Rows that are kept in fewer bits than float32, and how numbers become them.
//
// Rows of 16 bits are numbers (halves.h). Those of 8 bits are codes with one scale a row; a key is
// rotated before it is rounded, and the queries with it, which leaves their products as they are:
// keys of real models have a few channels far above the others, which one scale would leave nothing
// but zeros. The rotation is Hadamard's matrix over the largest power of two that divides the head
// size, over and over, with orthonormal rows.
#ifndef AVL_CODES_H
#define AVL_CODES_H

#include <stdint.h>

// Cached and new rows of a step that are kept so: [B, Hkv, rows, D], and of 8 bits [B, Hkv, rows]
// scales.
typedef struct avl_codes {
    const void *k_new, *v_new, *k_active, *v_active, *k_parked, *v_parked;
    const float *k_new_scales, *v_new_scales, *k_active_scales, *v_active_scales, *k_parked_scales,
        *v_parked_scales;
    int64_t bits; // 8 or 16
} avl_codes;

enum { AVL_MOST_CODE = 127 };

// What codes.c is compiled to for one level of the processor's instructions. Rows [count, d].
typedef struct avl_code_kernels {
    void (*rotate)(const float *rows, int64_t count, int64_t d, float *to);
    void (*round)(const float *rows, int64_t count, int64_t d, int8_t *codes, float *scales);
    void (*halve)(const float *rows, int64_t count, int64_t d, uint16_t *halves);
} avl_code_kernels;

extern const avl_code_kernels avl_codes_base, avl_codes_avx2, avl_codes_avx512;

#endif
