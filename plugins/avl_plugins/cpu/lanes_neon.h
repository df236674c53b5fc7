// Registers of NEON, for widen.h.
#ifndef AVL_LANES_NEON_H
#define AVL_LANES_NEON_H

#include <arm_neon.h>

#define LANES 4
#define REGISTERS 32

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef float32x4_t four_sums;

HELPER lanes from_bytes(const void *from)
{
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    int16x8_t wider = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (lanes)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wider)));
}
HELPER lanes from_halves(const void *from)
{
    return (lanes)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
HELPER lanes from_bfloats(const void *from)
{
    return (lanes)vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}

// A register's total, in the order of `totals`.
HELPER float total(lanes v)
{
    float32x4_t pairs = vpaddq_f32((float32x4_t)v, (float32x4_t)v);
    return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
}

// The totals of four.
HELPER four_sums totals(const lanes v[4])
{
    return vpaddq_f32(vpaddq_f32((float32x4_t)v[0], (float32x4_t)v[1]),
                      vpaddq_f32((float32x4_t)v[2], (float32x4_t)v[3]));
}

HELPER void store_sums(float *to, four_sums v, int adds)
{
    vst1q_f32(to, adds ? vaddq_f32(vld1q_f32(to), v) : v);
}

#endif
