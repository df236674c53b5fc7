// Products of bytes on Arm, for pieces.h: with dotprod or without.
#ifndef AVL_DOT_NEON_H
#define AVL_DOT_NEON_H

#include <arm_neon.h>

enum { LANES = 4, HELD = 2, TOGETHER = 4 }; // rows that fill the registers (dot_x86.h)
enum { FLIPPED = 0 };             // both factors have a sign

typedef int32_t whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

// Numbers of binary16 as float32.
HELPER floats of_halves(const void *from)
{
    return (floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

// Whole numbers, of two that are as near the even one.
HELPER whole nearest(floats v) { return (whole)vcvtnq_s32_f32((float32x4_t)v); }

// sum + products of each output's four codes with four of x.
HELPER whole add_bytes(whole sum, bytes codes, bytes x, int64_t bits)
{
    (void)bits;
    int8x16_t c = (int8x16_t)codes, v = (int8x16_t)x;
#if defined(__ARM_FEATURE_DOTPROD)
    return (whole)vdotq_s32((int32x4_t)sum, c, v);
#else
    // Sums of two products have 16 bits, as codes of x are none of -128.
    int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(v));
    int16x8_t high = vmull_s8(vget_high_s8(c), vget_high_s8(v));
    return (whole)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
#endif
}

// add_bytes with the same four of x for all outputs.
HELPER whole add_dots(whole sum, bytes codes, int32_t x, int64_t bits)
{
    return add_bytes(sum, codes, (bytes)vdupq_n_s32(x), bits);
}

// A register's codes of 4 bits as bytes, from 0 for the least: those of the low halves come first. No
// span is shorter than a register.
HELPER bytes halves_of(const uint8_t *from)
{
    const uint8x8_t both = veor_u8(vld1_u8(from), vdup_n_u8(0x88));
    return (bytes)vcombine_u8(vand_u8(both, vdup_n_u8(15)), vshr_n_u8(both, 4));
}

HELPER bytes halves_of_short(const uint8_t *from) { return halves_of(from); }
HELPER bytes short_bytes(const uint8_t *from) { return *(const bytes *)from; }

#endif
