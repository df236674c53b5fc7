// Scores of a tile become weights, relative to about the greatest of each row so far.
#ifndef AVL_PROMPT_WEIGH_H
#define AVL_PROMPT_WEIGH_H

#include "prompt_tile.h"

#include <math.h>

// The greater of each of four lanes, and what is left of a register's lanes when halves are put
// together until four are left.
#if defined(__AVX2__)
HELPER quad greater_of_four(quad a, quad b) { return (quad)_mm_max_ps((__m128)a, (__m128)b); }
#if defined(__AVX512F__)
HELPER __m256 low_half(lanes a) { return _mm512_castps512_ps256((__m512)a); }
HELPER __m256 high_half(lanes a) { return _mm512_extractf32x8_ps((__m512)a, 1); }
HELPER __m256 eight_greatest(lanes a) { return _mm256_max_ps(low_half(a), high_half(a)); }
HELPER __m256 eight_sums(lanes a) { return _mm256_add_ps(low_half(a), high_half(a)); }
#else
HELPER __m256 eight_greatest(lanes a) { return (__m256)a; }
HELPER __m256 eight_sums(lanes a) { return (__m256)a; }
#endif
HELPER quad four_greatest(lanes a)
{
    const __m256 of = eight_greatest(a);
    return (quad)_mm_max_ps(_mm256_castps256_ps128(of), _mm256_extractf128_ps(of, 1));
}
HELPER quad four_sums(lanes a)
{
    const __m256 of = eight_sums(a);
    return (quad)_mm_add_ps(_mm256_castps256_ps128(of), _mm256_extractf128_ps(of, 1));
}
#else
HELPER quad greater_of_four(quad a, quad b) { return (quad)greater((lanes)a, (lanes)b); }
HELPER quad four_greatest(lanes a) { return (quad)a; }
HELPER quad four_sums(lanes a) { return (quad)a; }
#endif

HELPER quad sum_of_four(quad a, quad b) { return a + b; }

// Each row's lanes put together, four rows at a time, so that one need not wait for another.
#define TOGETHER(of, four, put, to)                                                                \
    for (int h = 0; h < EVEN; h += 4) {                                                            \
        quad a = four(of[h]), b = four(of[h + 1]);                                                 \
        quad c = four(of[h + 2 < ROWS ? h + 2 : h]), e = four(of[h + 3 < ROWS ? h + 3 : h]);       \
        quad ab = put(SHUFFLED(a, b, 0, 4, 1, 5), SHUFFLED(a, b, 2, 6, 3, 7));                     \
        quad ce = put(SHUFFLED(c, e, 0, 4, 1, 5), SHUFFLED(c, e, 2, 6, 3, 7));                     \
        *(quad *)(to + h) = put(SHUFFLED(ab, ce, 0, 1, 4, 5), SHUFFLED(ab, ce, 2, 3, 6, 7));       \
    }

// scores become their weights, and the sum of each lane is returned.
HELPER lanes weights_of(float *restrict scores, float top)
{
    lanes sum = {0};
#if defined(__AVX512F__)
    const __m512 least = _mm512_set1_ps(-126.0f); // as avl_exp2, with fewer instructions
    for (int j = 0; j < KEYS; j += LANES) {
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(top));
        const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
        __m512 p = _mm512_set1_ps(1.5345811703e-4f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3399931216e-3f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6184889582e-3f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5503287770e-2f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022646891e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314720574e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
        p = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), p, n);
        _mm512_storeu_ps(scores + j, p);
        sum += (lanes)p;
    }
#else
    for (int j = 0; j < KEYS; j += LANES) {
        for (int i = j; i < j + LANES; i++)
            scores[i] = avl_exp2(scores[i] - top);
        sum += *(const lanes *)(scores + j);
    }
#endif
    return sum;
}

// scores become weights, 2 ** (score - top), where top is about the greatest score of the row so
// far; what a row does not see of the block's keys weighs nothing. Keys are those of a place from
// `from` on. Earlier weights, and sums of them, shrink by shrink[r], which is 1 in most blocks.
HELPER void weigh(tile *of, const place *in, int64_t from, int64_t keys, float scores[ROWS][KEYS],
                  float shrink[ROWS])
{
    lanes found[EVEN];
    float now[EVEN];
    if (seen_by(in, from, keys, of->new_row[0]) < KEYS)
        for (int r = 0; r < ROWS; r++)
            for (int64_t j = seen_by(in, from, keys, of->new_row[r]); j < KEYS; j++)
                scores[r][j] = -INFINITY;
    EACH_ROW(r) {
        found[r] = *(const lanes *)scores[r];
        for (int j = LANES; j < KEYS; j += LANES)
            found[r] = greater(found[r], *(const lanes *)(scores[r] + j));
    }
    TOGETHER(found, four_greatest, greater_of_four, now)
    int raised = 0;
    for (int r = 0; r < ROWS; r++) {
        shrink[r] = 1.0f;
        raised |= now[r] > of->top[r] + KEPT;
    }
    for (int r = 0; raised && r < ROWS; r++)
        if (now[r] > of->top[r]) {
            shrink[r] = avl_exp2(of->top[r] - now[r]);
            of->top[r] = now[r];
            of->sum[r] *= shrink[r];
        }
    EACH_ROW(r) found[r] = weights_of(scores[r], of->top[r]);
    TOGETHER(found, four_sums, sum_of_four, now)
    for (int r = 0; r < EVEN; r++)
        of->sum[r] += now[r];
}

#endif
