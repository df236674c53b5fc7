// Many rows on Arm's i8mm, for quantized.c: two rows times two outputs, eight inputs at a time.
#ifndef AVL_MATRIX_NEON_H
#define AVL_MATRIX_NEON_H

enum { INPUTS = 8, MATRIX = 16, MATRICES = 2 * QUARTERS, PAIRS = TOGETHER / 2 };

// A span's codes as signed bytes: for every INPUTS of them, matrices of two outputs each.
HELPER const uint8_t *unpack(const avl_packed *w, const uint8_t *piece, uint8_t *to, int64_t bits)
{
    for (int64_t k = 0; k < w->span; k += INPUTS) {
        const uint8_t *at = piece + k * TILE * bits / 8;
        codes4 first = load_codes(at, bits), next = load_codes(at + 4 * TILE * bits / 8, bits);
        EACH_QUARTER(f) {
            int32x4_t a = (int32x4_t)first.of[f], b = (int32x4_t)next.of[f];
            int32_t *matrix = (int32_t *)(to + k * TILE + 2 * f * MATRIX);
            vst1q_s32(matrix, vzip1q_s32(a, b));
            vst1q_s32(matrix + 4, vzip2q_s32(a, b));
        }
    }
    return to;
}

// The first, and the last, halves of two.
HELPER int32x4_t firsts(int32x4_t a, int32x4_t b)
{
    return vcombine_s32(vget_low_s32(a), vget_low_s32(b));
}
HELPER int32x4_t lasts(int32x4_t a, int32x4_t b)
{
    return vcombine_s32(vget_high_s32(a), vget_high_s32(b));
}

// sums[r] + products of a span with row r of TOGETHER, or with one row, which is its own neighbour.
HELPER void add_rows(const avl_packed *w, const int8_t *x, int rows, const uint8_t *codes,
                     whole4 sums[TOGETHER], int64_t bits)
{
    (void)bits;
    const int pairs = rows == 1 ? 1 : PAIRS, next = rows == 1 ? 0 : 1;
    int32x4_t of[PAIRS][MATRICES];
    _Pragma("GCC unroll 2") for (int p = 0; p < pairs; p++)
        EACH_QUARTER(f) {
            int32x4_t a = (int32x4_t)sums[2 * p].of[f], b = (int32x4_t)sums[2 * p + next].of[f];
            of[p][2 * f] = firsts(a, b);
            of[p][2 * f + 1] = lasts(a, b);
        }
    for (int64_t k = 0; k < w->span; k += INPUTS) {
        int8x16_t two[PAIRS];
        _Pragma("GCC unroll 2") for (int p = 0; p < pairs; p++)
            two[p] = vcombine_s8(vld1_s8(x + 2 * p * w->span + k),
                                 vld1_s8(x + (2 * p + next) * w->span + k));
        _Pragma("GCC unroll 8") for (int m = 0; m < MATRICES; m++) {
            int8x16_t weights = vld1q_s8((const int8_t *)codes + k * TILE + m * MATRIX);
            _Pragma("GCC unroll 2") for (int p = 0; p < pairs; p++)
                of[p][m] = vmmlaq_s32(of[p][m], two[p], weights);
        }
    }
    _Pragma("GCC unroll 2") for (int p = 0; p < pairs; p++)
        EACH_QUARTER(f) {
            sums[2 * p].of[f] = (whole)firsts(of[p][2 * f], of[p][2 * f + 1]);
            if (next)
                sums[2 * p + 1].of[f] = (whole)lasts(of[p][2 * f], of[p][2 * f + 1]);
        }
}

#endif
