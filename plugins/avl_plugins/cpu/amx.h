// Matrix registers of Intel's AMX: eight, of 16 rows of 64 bytes each. Included by what build.py
// compiles for them alone.
#ifndef AVL_AMX_H
#define AVL_AMX_H

#include "transpose.h"

#include <stdint.h>

enum {
    STEP = 32,            // its columns of bf16
    MATRIX = SIDE * STEP, // its values of bf16
};

// GCC 12 takes _tile_loadconfig for an instruction that reads 8 bytes, and _tile_loadd for one that
// reads none, so it might store later, or leave out, what they read.
static inline __attribute__((always_inline)) void avl_have_stored(const void *what)
{
    __asm__ volatile("" ::"r"(what) : "memory");
}

// How _tile_loadconfig reads it.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} avl_configuration;

// A thread calls it before it uses the registers, and `avl_amx_end` after. The first six have so many
// rows, with which products take as long as they have.
static inline void avl_amx_begin_with(int rows)
{
    avl_configuration all __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        all.row_bytes[i] = 64;
        all.rows[i] = (uint8_t)(i < 6 ? rows : SIDE);
    }
    avl_have_stored(&all);
    _tile_loadconfig(&all);
}

static inline void avl_amx_begin(void) { avl_amx_begin_with(SIDE); }

// ONNX Runtime's kernels, which run on the same threads, have a configuration of their own.
static inline void avl_amx_end(void) { _tile_release(); }

// Rounds two vectors to bf16; what they have in the same place become neighbours, `even` first.
static inline __attribute__((always_inline)) __m512i avl_pair(__m512 even, __m512 odd)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                           8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

#endif
