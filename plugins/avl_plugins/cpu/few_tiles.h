// Scores and sums of values of codes on the matrix registers of AMX, for few.c: numbers of 24 bits in
// three digits, sixteen queries at a time. Scores are those of few_dots.h, to the last bit.
#ifndef AVL_FEW_TILES_H
#define AVL_FEW_TILES_H

#include "few_digits.h"

#if defined(AVL_ON_TILES)

#include "amx.h"

enum {
    ON_TILES = 1,
    CODES_OF = 64,             // codes in a row of a register
    BYTES = SIDE * CODES_OF,   // of a register
    PIECE = 256,               // rows whose values are turned at a time
    APART = PIECE + CODES_OF,  // bytes from one query's digits to the next: not all in one set
    LIMIT = (1 << 24) - 16,    // of a weight as a whole number without a sign
};

HELPER int64_t in_registers(int64_t d) { return (d + CODES_OF - 1) / CODES_OF; }
HELPER int64_t in_sides(int64_t queries) { return (queries + SIDE - 1) / SIDE; }

// In floats: what products of each query count for, and digits [queries / 16, DIGITS, D / 64, 16, 64].
HELPER int64_t dots_size(int64_t queries, int64_t d)
{
    const int64_t digits = in_sides(queries) * DIGITS * in_registers(d) * BYTES;
    return in_sides(queries) * SIDE + digits / (int64_t)sizeof(float);
}

HELPER void make_dots(const float *q, int64_t queries, int64_t d, float scale, float *to)
{
    const int64_t each = in_registers(d) * BYTES;
    int8_t *all = (int8_t *)(to + in_sides(queries) * SIDE);
    memset(to, 0, (size_t)dots_size(queries, d) * sizeof *to);
    for (int64_t g = 0; g < queries; g++) {
        const float inverse = unit_of(q + g * d, d, scale, to + g);
        int8_t *own = all + g / SIDE * DIGITS * each + g % SIDE * CODES_OF;
        for (int64_t i = 0; i < d; i++) {
            int8_t digits[DIGITS];
            split_number(q[g * d + i] * inverse, digits);
            for (int k = 0; k < DIGITS; k++)
                own[k * each + i / CODES_OF * BYTES + i % CODES_OF] = digits[k];
        }
    }
}

HELPER void begin_tiles(int64_t queries) { avl_amx_begin_with((int)least(queries, SIDE)); }

// Blocks whose scores are found together, so that registers and memory do not wait for each other; and
// what they are found from, and what with each digit.
enum { TURNED = 4 };
typedef struct {
    __m512i words[TURNED][MOST_DOTS / 4];
    int32_t sums[TURNED][DIGITS][SIDE][SIDE] __attribute__((aligned(64)));
    float scales[TURNED][BLOCK];
} scores_room;

// sums of sixteen queries' digits, of which those with one digit have `each` bytes, and so many blocks.
HELPER void multiply_keys(scores_room *of, const int8_t *digits, int64_t each, int64_t blocks)
{
    avl_have_stored(of);
    for (int64_t i = 0; i < blocks; i++) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        for (int64_t k = 0; k < each; k += BYTES) {
            _tile_loadd(6, (const char *)of->words[i] + k, CODES_OF);
            _tile_loadd(3, digits + k, CODES_OF);
            _tile_dpbssd(0, 3, 6);
            _tile_loadd(4, digits + each + k, CODES_OF);
            _tile_dpbssd(1, 4, 6);
            _tile_loadd(5, digits + 2 * each + k, CODES_OF);
            _tile_dpbssd(2, 5, 6);
        }
        _tile_stored(0, of->sums[i][0], CODES_OF);
        _tile_stored(1, of->sums[i][1], CODES_OF);
        _tile_stored(2, of->sums[i][2], CODES_OF);
    }
    avl_have_stored(of);
}

// scores[g, j] of all queries, as make_dots made them, and rows [begin, end) of all; scores
// [queries, `stride`] begin with those.
HELPER void score_on_tiles(const place places[3], int64_t begin, int64_t end, int64_t queries,
                           int64_t d, const float *made, float *scores, int64_t stride,
                           int64_t ahead, float *together)
{
    scores_room own;
    const int64_t each = in_registers(d) * BYTES;
    begin_tiles(queries);
    for (int64_t from = begin; from < end; from += TURNED * BLOCK) {
        const int8_t *digits = (const int8_t *)(made + in_sides(queries) * SIDE);
        int64_t blocks = 0;
        for (int64_t at = from; at < end && blocks < TURNED; at += BLOCK, blocks++) {
            const block some = find_block(places, at, least(BLOCK, end - at), d, 0, ahead, together);
            turn_rows(&some, d, 0, own.words[blocks]);
            memcpy(own.scales[blocks], some.scales, sizeof own.scales[blocks]);
        }
        for (int64_t first = 0; first < queries; first += SIDE, digits += DIGITS * each) {
            multiply_keys(&own, digits, each, blocks);
            for (int64_t g = first; g < least(queries, first + SIDE); g++)
                for (int64_t i = 0; i < blocks; i++) {
                    __m512i found[DIGITS];
                    _Pragma("GCC unroll 3") for (int k = 0; k < DIGITS; k++) found[k] =
                        _mm512_load_si512(own.sums[i][k][g - first]);
                    *(lanes *)(scores + g * stride + from - begin + i * BLOCK) =
                        joined(found) * lanes_at(own.scales[i]) * all_of(made[g]);
                }
        }
    }
    avl_amx_end();
}

// Weights of some queries as digits without a sign, and values in the order in which registers are
// loaded with them: columns of which each four make one, [D / 16, PIECE / 4, 16, 4].
typedef struct {
    uint8_t digits[DIGITS][SIDE][APART] __attribute__((aligned(64)));
    int8_t values[MOST_DOTS / SIDE][PIECE / 4][CODES_OF] __attribute__((aligned(64)));
    int32_t sums[MOST_DOTS / SIDE][DIGITS][SIDE][SIDE] __attribute__((aligned(64)));
    float scales[CHUNK], units[SIDE], inverses[SIDE];
} values_room;

// A block's values, from row `at` of a piece on. Of 64 columns, register x has those whose number's
// bits 2 and 3 are x.
HELPER void turn_values(const block *of, int64_t d, int64_t at, values_room *to)
{
    for (int64_t i = 0; i < d; i += CODES_OF) {
        const int64_t left = d - i, side = i / SIDE;
        const __mmask64 there = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
        _Pragma("GCC unroll 4") for (int64_t j = 0; j < BLOCK; j += 4)
        {
            const char *row = of->rows + j * d + i;
            const __m512i a = _mm512_maskz_loadu_epi8(there, row);
            const __m512i b = _mm512_maskz_loadu_epi8(there, row + d);
            const __m512i c = _mm512_maskz_loadu_epi8(there, row + 2 * d);
            const __m512i e = _mm512_maskz_loadu_epi8(there, row + 3 * d);
            const __m512i ab = _mm512_unpacklo_epi8(a, b), ce = _mm512_unpacklo_epi8(c, e);
            const __m512i next_ab = _mm512_unpackhi_epi8(a, b), next_ce = _mm512_unpackhi_epi8(c, e);
            const int64_t four = (at + j) / 4;
            _mm512_store_si512(to->values[side][four], _mm512_unpacklo_epi16(ab, ce));
            _mm512_store_si512(to->values[side + 1][four], _mm512_unpackhi_epi16(ab, ce));
            _mm512_store_si512(to->values[side + 2][four], _mm512_unpacklo_epi16(next_ab, next_ce));
            _mm512_store_si512(to->values[side + 3][four], _mm512_unpackhi_epi16(next_ab, next_ce));
        }
    }
}

// Scales of rows [begin, end) of all, and 0 behind them as far as weights are.
HELPER void find_scales(const place places[3], int64_t begin, int64_t end, values_room *to)
{
    for (const place *p = places; p < places + 3; p++) {
        const int64_t from = most(begin, p->first), until = least(end, p->first + p->rows);
        for (int64_t j = from; j < until; j++)
            to->scales[j - begin] = p->values.scales[j - p->first];
    }
    for (int64_t j = end - begin; j % BLOCK; j++)
        to->scales[j] = 0.0f;
}

// What a query's weights of `count` rows, times their scales, are multiplied with to become whole
// numbers, and what these count for.
HELPER void set_unit(const float *weights, int64_t count, int64_t query, values_room *to)
{
    lanes greatest = {0}, sum = {0};
    for (int64_t j = 0; j < count; j += LANES) {
        const lanes share = lanes_at(weights + j) * lanes_at(to->scales + j);
        greatest = greater(share, greatest);
        sum += share;
    }
    const float largest = greatest_lane(greatest), unit = largest / LIMIT, total = lane_sum(sum);
    to->units[query] = total <= FLT_MAX ? unit : NAN;
    to->inverses[query] = total <= FLT_MAX && unit >= FLT_MIN ? LIMIT / largest : 0.0f;
}

// Digits of a query's weights of `count` rows from row `at` of a chunk on, and 0 behind them as far as
// registers reach.
HELPER void split_weights(const float *weights, int64_t at, int64_t count, int64_t query,
                          values_room *to)
{
    const lanes inverse = all_of(to->inverses[query]);
    int64_t j = 0;
    for (; j < count; j += LANES) {
        const lanes share = lanes_at(weights + at + j) * lanes_at(to->scales + at + j) * inverse;
        __m512i v = _mm512_cvtps_epi32((__m512)share); // bytes of one digit, of each four and of all:
        v = _mm512_shuffle_epi8(v, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
        v = _mm512_permutexvar_epi32(
            _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0), v);
        _mm_store_si128((__m128i *)(to->digits[2][query] + j), _mm512_castsi512_si128(v));
        _mm_store_si128((__m128i *)(to->digits[1][query] + j), _mm512_extracti32x4_epi32(v, 1));
        _mm_store_si128((__m128i *)(to->digits[0][query] + j), _mm512_extracti32x4_epi32(v, 2));
    }
    for (; j % CODES_OF; j += LANES)
        for (int k = 0; k < DIGITS; k++)
            _mm_store_si128((__m128i *)(to->digits[k][query] + j), _mm_setzero_si128());
}

// sums += digits times values of `count` rows of a piece.
HELPER void add_piece(values_room *of, int64_t count, int64_t d)
{
    avl_have_stored(of);
    for (int64_t i = 0; i < in_registers(d) * CODES_OF / SIDE; i++) {
        _tile_loadd(0, of->sums[i][0], CODES_OF);
        _tile_loadd(1, of->sums[i][1], CODES_OF);
        _tile_loadd(2, of->sums[i][2], CODES_OF);
        for (int64_t j = 0; j < count; j += CODES_OF) {
            _tile_loadd(6, of->values[i][j / 4], CODES_OF);
            _tile_loadd(3, of->digits[0][0] + j, APART);
            _tile_dpbusd(0, 3, 6);
            _tile_loadd(4, of->digits[1][0] + j, APART);
            _tile_dpbusd(1, 4, 6);
            _tile_loadd(5, of->digits[2][0] + j, APART);
            _tile_dpbusd(2, 5, 6);
        }
        _tile_stored(0, of->sums[i][0], CODES_OF);
        _tile_stored(1, of->sums[i][1], CODES_OF);
        _tile_stored(2, of->sums[i][2], CODES_OF);
    }
    avl_have_stored(of);
}

// A query's sums as numbers, and their columns in order.
HELPER void finish_sums(const values_room *of, int64_t query, int64_t d, float *out)
{
    const lanes unit = all_of(of->units[query]);
    for (int64_t i = 0; i < d; i += CODES_OF) {
        float columns[CODES_OF];
        for (int x = 0; x < 4; x++) {
            const int32_t(*sums)[SIDE][SIDE] = of->sums[i / SIDE + x];
            lanes sum = {0};
            for (int k = 0; k < DIGITS; k++)
                sum = fma_of(sum, all_of(256.0f),
                             (lanes)_mm512_cvtepi32_ps(_mm512_load_si512(sums[k][query])));
            const lanes found = sum * unit;
            for (int j = 0; j < SIDE; j++)
                columns[j / 4 * SIDE + x * 4 + j % 4] = found[j];
        }
        memcpy(out + i, columns, (size_t)least(CODES_OF, d - i) * sizeof(float));
    }
}

// out[g] of all queries: the sum of weights[g, j] * scales[j] * values[j] over rows [begin, end) of
// all, which are a chunk; weights [queries, `stride`] begin with it.
HELPER void sum_on_tiles(const place places[3], int64_t begin, int64_t end, int64_t queries, int64_t d,
                         const float *weights, int64_t stride, int64_t ahead, float *together,
                         float *out)
{
    values_room own;
    const int64_t all = end - begin;
    find_scales(places, begin, end, &own);
    begin_tiles(queries);
    for (int64_t first = 0; first < queries; first += SIDE) {
        const int64_t count = least(SIDE, queries - first);
        const float *from = weights + first * stride;
        memset(own.sums, 0, sizeof own.sums);
        for (int64_t g = 0; g < count; g++)
            set_unit(from + g * stride, all, g, &own);
        for (int64_t at = 0; at < all; at += PIECE) {
            const int64_t rows = least(PIECE, all - at);
            for (int64_t j = 0; j < rows; j += BLOCK) {
                const block some = find_block(places, begin + at + j, least(BLOCK, rows - j), d, 1,
                                              ahead, together);
                turn_values(&some, d, j, &own);
            }
            for (int64_t g = 0; g < count; g++)
                split_weights(from + g * stride, at, rows, g, &own);
            add_piece(&own, rows, d);
        }
        for (int64_t g = 0; g < count; g++)
            finish_sums(&own, g, d, out + (first + g) * d);
    }
    avl_amx_end();
}

#else

enum { ON_TILES = 0 };
HELPER void score_on_tiles(const place places[3], int64_t begin, int64_t end, int64_t queries,
                           int64_t d, const float *made, float *scores, int64_t stride,
                           int64_t ahead, float *together)
{
    (void)places, (void)begin, (void)end, (void)queries, (void)d, (void)made, (void)scores;
    (void)stride, (void)ahead, (void)together;
}
HELPER void sum_on_tiles(const place places[3], int64_t begin, int64_t end, int64_t queries, int64_t d,
                         const float *weights, int64_t stride, int64_t ahead, float *together,
                         float *out)
{
    (void)places, (void)begin, (void)end, (void)queries, (void)d, (void)weights, (void)stride;
    (void)ahead, (void)together, (void)out;
}

#endif

#endif
