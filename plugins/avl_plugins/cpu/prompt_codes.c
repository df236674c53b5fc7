// Attention of a prompt whose rows are codes of 8 bits, in whole numbers (AVX-512 VNNI): tiles are
// those of prompt.c, but queries and weights have two digits of 8 bits each, which with the codes
// make products of bytes. Two digits are 2 ** -16 of the greatest number, when the codes themselves
// are 2 ** -8 of it; products of bytes are four times as many an instruction as those of float32.
#include "prompt_codes.h"

#if defined(AVL_VNNI) // build.py: not every compiler knows it

#include "prompt_codes_pack.h"
#include "prompt_weigh.h"

typedef __m512i sums[ROWS][WIDE];

// sum + products of four bytes each, those of `a` without a sign. By the intrinsic GCC copies sums
// from register to register until there are none left.
HELPER __m512i add_products(__m512i sum, __m512i a, __m512i b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

// The four bytes of each row at `at` of its own, with a block's: keys are what begins at 0, or
// weights are.
HELPER void add_keys(sums of, const uint8_t *keys, const int8_t *const q[ROWS], int64_t d)
{
    sums sum; // in registers, which `of` is not
    EACH_ROW(r) EACH_WIDE(x, WIDE) sum[r][x] = of[r][x];
    for (int64_t i = 0; i < d; i += FOUR) {
        __m512i key[WIDE];
        EACH_WIDE(x, WIDE) key[x] = _mm512_loadu_si512(keys + (i * KEYS + x * SIDE * FOUR));
        EACH_ROW(r) {
            int32_t four;
            memcpy(&four, q[r] + i, sizeof four);
            EACH_WIDE(x, WIDE)
                sum[r][x] = add_products(sum[r][x], key[x], _mm512_set1_epi32(four));
        }
    }
    EACH_ROW(r) EACH_WIDE(x, WIDE) of[r][x] = sum[r][x];
}

// scores[r, j] = q[r] . key j, as powers of two.
HELPER void score_codes(const room *own, const int64_t rows[ROWS], int64_t d, float scores[ROWS][KEYS])
{
    const int8_t *high[ROWS], *low[ROWS];
    sums of;
    EACH_ROW(r) {
        high[r] = own->high + rows[r] * d;
        low[r] = own->low + rows[r] * d;
        EACH_WIDE(x, WIDE) of[r][x] = _mm512_set1_epi32(own->starts[2 * rows[r]]);
    }
    add_keys(of, own->keys, high, d);
    EACH_ROW(r) {
        const __m512i start = _mm512_set1_epi32(own->starts[2 * rows[r] + 1]);
        EACH_WIDE(x, WIDE) of[r][x] = _mm512_add_epi32(_mm512_slli_epi32(of[r][x], 8), start);
    }
    add_keys(of, own->keys, low, d);
    EACH_ROW(r) EACH_WIDE(x, WIDE) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(own->scales[rows[r]]),
                                           _mm512_loadu_ps(own->key_scales + x * SIDE));
        _mm512_storeu_ps(scores[r] + x * SIDE,
                         _mm512_mul_ps(scale, _mm512_cvtepi32_ps(of[r][x])));
    }
}

// Weights times values' scales, as two digits of whole numbers; [r] is in units of units[r]. Bytes
// lie as packing leaves them: of keys 16 m + 4 n to 16 m + 4 n + 3 at 16 n + 4 m.
HELPER void round_weights(const room *own, float weights[ROWS][KEYS], uint8_t high[ROWS][KEYS],
                          uint8_t low[ROWS][KEYS], float units[EVEN])
{
    enum { MOST = DIGIT * DIGIT - 1 };
    lanes found[EVEN];
    __m512 scale[WIDE];
    EACH_WIDE(x, WIDE) scale[x] = _mm512_loadu_ps(own->value_scales + x * SIDE);
    EACH_ROW(r) {
        lanes top = {0};
        EACH_WIDE(x, WIDE) {
            const __m512 weight = _mm512_mul_ps(_mm512_loadu_ps(weights[r] + x * SIDE), scale[x]);
            _mm512_storeu_ps(weights[r] + x * SIDE, weight);
            top = greater(top, (lanes)weight);
        }
        found[r] = top;
    }
    TOGETHER(found, four_greatest, greater_of_four, units)
    EACH_ROW(r) {
        const __m512 factor = _mm512_set1_ps(units[r] > 0.0f ? (float)MOST / units[r] : 0.0f);
        const __m512i byte = _mm512_set1_epi16(DIGIT - 1);
        __m512i digits[WIDE];
        EACH_WIDE(x, WIDE) digits[x] = _mm512_cvtps_epi32(
            _mm512_mul_ps(factor, _mm512_loadu_ps(weights[r] + x * SIDE)));
        const __m512i a = _mm512_packus_epi32(digits[0], digits[1]);
        const __m512i b = _mm512_packus_epi32(digits[2], digits[3]);
        _mm512_storeu_si512(high[r], _mm512_packus_epi16(_mm512_srli_epi16(a, 8),
                                                         _mm512_srli_epi16(b, 8)));
        _mm512_storeu_si512(low[r], _mm512_packus_epi16(_mm512_and_si512(a, byte),
                                                        _mm512_and_si512(b, byte)));
        units[r] *= 1.0f / (float)MOST;
    }
}

HELPER void add_weighted(sums of, const int8_t *values, uint8_t weights[ROWS][KEYS], int64_t d,
                         int64_t count, int wide)
{
    sums sum;
    EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] = of[r][x];
    for (int64_t j = 0; j < count; j += FOUR) {
        __m512i value[WIDE];
        EACH_WIDE(x, wide) value[x] = _mm512_loadu_si512(values + j * d + x * SIDE * FOUR);
        EACH_ROW(r) {
            int32_t four;
            memcpy(&four, weights[r] + j % SIDE * FOUR + j / SIDE * FOUR, sizeof four);
            EACH_WIDE(x, wide)
                sum[r][x] = add_products(sum[r][x], _mm512_set1_epi32(four), value[x]);
        }
    }
    EACH_ROW(r) EACH_WIDE(x, wide) of[r][x] = sum[r][x];
}

// out[r] = shrink[r] * out[r] + the sum of weights[r, j] * values[j], so many lanes of each.
HELPER void add_lanes(const tile *to, const int8_t *values, uint8_t high[ROWS][KEYS],
                      uint8_t low[ROWS][KEYS], const float units[EVEN], const float shrink[ROWS],
                      int64_t d, int64_t count, int64_t i, int wide)
{
    sums of;
    EACH_ROW(r) EACH_WIDE(x, wide) of[r][x] = _mm512_setzero_si512();
    add_weighted(of, values + i * FOUR, high, d, count, wide);
    EACH_ROW(r) EACH_WIDE(x, wide) of[r][x] = _mm512_slli_epi32(of[r][x], 8);
    add_weighted(of, values + i * FOUR, low, d, count, wide);
    __m512 grown[ROWS][WIDE]; // all of them before any is stored, as rows may be repeated
    EACH_ROW(r) EACH_WIDE(x, wide) {
        const __m512 before = _mm512_mul_ps(_mm512_set1_ps(shrink[r]),
                                            _mm512_loadu_ps(to->out[r] + i + x * SIDE));
        grown[r][x] = _mm512_fmadd_ps(_mm512_set1_ps(units[r]), _mm512_cvtepi32_ps(of[r][x]),
                                      before);
    }
    EACH_ROW(r) EACH_WIDE(x, wide) _mm512_storeu_ps(to->out[r] + i + x * SIDE, grown[r][x]);
}

HELPER void attend_tile(const room *own, tile *of, const int64_t rows[ROWS], const place *in,
                        int64_t from, int64_t keys, int64_t d)
{
    const int64_t count = seen_by(in, from, keys, of->new_row[ROWS - 1]);
    if (!count)
        return;
    float weights[ROWS][KEYS] __attribute__((aligned(64))), shrink[ROWS], units[EVEN];
    uint8_t high[ROWS][KEYS] __attribute__((aligned(64))), low[ROWS][KEYS];
    score_codes(own, rows, d, weights);
    weigh(of, in, from, keys, weights, shrink);
    round_weights(own, weights, high, low, units);
    int64_t i = 0;
    for (; i + WIDE * SIDE <= d; i += WIDE * SIDE)
        add_lanes(of, own->values, high, low, units, shrink, d, count, i, WIDE);
    for (; i < d; i += SIDE)
        add_lanes(of, own->values, high, low, units, shrink, d, count, i, 1);
}

HELPER void attend_rows(const avl_prompt *prompt, int64_t task, float *memory, int64_t d)
{
    const avl_step *step = prompt->step;
    const int64_t part = task / prompt->blocks, first = task % prompt->blocks * prompt->block;
    const int64_t end = least(rows_of(prompt), first + prompt->block);
    const room own = room_at(memory, prompt->block, d);
    tile tiles[TILES];
    const int64_t count = tiles_at(prompt, part, step->out + start_of(step, part, prompt->group),
                                   first, end, tiles);
    for (const tile *of = tiles; of < tiles + count; of++)
        for (int r = 0; r < of->count; r++) {
            pack_query(&own, of->q[r], of->row[r] - first, d, step->scale * AVL_LOG2_E);
            memset(of->out[r], 0, (size_t)d * sizeof(float));
        }
    place places[3];
    find_places(step, part, places);
    for (const place *in = places; in < places + 3; in++) {
        const int64_t until = seen_by(in, 0, in->rows, (end - 1) / prompt->group);
        for (int64_t from = 0; from < until; from += KEYS) {
            const int64_t keys = least(KEYS, until - from);
            pack_keys(&own, &in->keys, from, keys, d);
            pack_values(&own, &in->values, from, keys, d);
            for (int64_t i = 0; i < count; i++) {
                int64_t rows[ROWS];
                EACH_ROW(r) rows[r] = tiles[i].row[r < tiles[i].count ? r : tiles[i].count - 1] - first;
                attend_tile(&own, tiles + i, rows, in, from, keys, d);
            }
        }
    }
    for (const tile *of = tiles; of < tiles + count; of++)
        for (int r = 0; r < of->count; r++) {
            const float share = 1.0f / of->sum[r];
            for (int64_t i = 0; i < d; i++)
                of->out[r][i] *= share;
        }
}

static void attend(const avl_prompt *prompt, int64_t task, float *memory)
{
    AVL_FOR_SIZE(attend_rows, prompt->step->head_dim, prompt, task, memory)
}

// Sums of products with both digits stay in 32 bits: 512 * 127 * LARGEST is less than 2 ** 31.
enum { MOST_SIZE = 512 };

static const avl_prompt_tiles kernels = {attend, room_of, AVL_PROMPT_BLOCK, ROWS, SIDE, MOST_SIZE};
const avl_prompt_tiles *const avl_prompt_codes = &kernels;

#else

const avl_prompt_tiles *const avl_prompt_codes = NULL;

#endif
