#include "quantized.h"

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define HELPER static inline __attribute__((always_inline))

enum {
    TILE = 64,     // outputs
    FEW = 4,       // rows up to which a weight is read for two rows at a time
    MANY = 256,    // rows whose sums are kept at a time
    LONGEST = 128, // inputs of a span
};

// Spans of x with nothing larger are taken for zeros: 127 over it would be infinite.
#define SMALLEST (127.0f / FLT_MAX)

// A tile's codes of four inputs, or its sums; a field has 16 outputs.
typedef struct {
    __m512i a, b, c, d;
} whole4;
typedef struct {
    __m512 a, b, c, d;
} float4;

HELPER int64_t spans_of(const avl_packed *w) { return w->inputs / w->span; }
HELPER int64_t codes_bytes(const avl_packed *w) { return w->span * TILE * w->bits / 8; }
HELPER int64_t piece_bytes(const avl_packed *w)
{
    return codes_bytes(w) + TILE * (int64_t)sizeof(float);
}
HELPER uint8_t *piece_of(const avl_packed *w, int64_t tile, int64_t span)
{
    return w->pieces + (tile * spans_of(w) + span) * piece_bytes(w);
}
HELPER const float *scales_of(const avl_packed *w, const uint8_t *piece)
{
    return (const float *)(piece + codes_bytes(w));
}

int64_t avl_tiles(const avl_packed *w) { return (w->outputs + TILE - 1) / TILE; }

int64_t avl_packed_bytes(const avl_packed *w) { return avl_tiles(w) * spans_of(w) * piece_bytes(w); }

// How many of a tile's outputs there are, as a mask.
HELPER __mmask64 outputs_of(const avl_packed *w, int64_t tile)
{
    int64_t left = w->outputs - tile * TILE;
    return left < TILE ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
}

// An input's signed codes of a tile as bytes without sign.
HELPER __m512i codes_at(const uint8_t *codes, int64_t bits, __mmask64 outputs)
{
    if (bits == 8)
        return _mm512_xor_si512(_mm512_maskz_loadu_epi8(outputs, codes),
                                _mm512_set1_epi8((char)0x80));
    __mmask32 pairs = (__mmask32)_pext_u64(outputs, 0x5555555555555555);
    __m512i wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(pairs, codes));
    __m512i halves = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 4));
    return _mm512_xor_si512(_mm512_and_si512(halves, _mm512_set1_epi8(15)), _mm512_set1_epi8(8));
}

// Four vectors of four groups each: group j of vector i and group i of vector j change places.
HELPER whole4 exchange(whole4 v)
{
    __m512i a = _mm512_shuffle_i32x4(v.a, v.b, 0x44), b = _mm512_shuffle_i32x4(v.a, v.b, 0xee);
    __m512i c = _mm512_shuffle_i32x4(v.c, v.d, 0x44), d = _mm512_shuffle_i32x4(v.c, v.d, 0xee);
    return (whole4){_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xdd),
                    _mm512_shuffle_i32x4(b, d, 0x88), _mm512_shuffle_i32x4(b, d, 0xdd)};
}

// Four inputs' codes, those of an output together.
HELPER whole4 interleave(__m512i p, __m512i q, __m512i r, __m512i s)
{
    __m512i low = _mm512_unpacklo_epi8(p, q), high = _mm512_unpackhi_epi8(p, q);
    __m512i next_low = _mm512_unpacklo_epi8(r, s), next_high = _mm512_unpackhi_epi8(r, s);
    return exchange((whole4){
        _mm512_unpacklo_epi16(low, next_low), _mm512_unpackhi_epi16(low, next_low),
        _mm512_unpacklo_epi16(high, next_high), _mm512_unpackhi_epi16(high, next_high)});
}

HELPER void store4(void *to, whole4 v)
{
    __m512i *at = to;
    _mm512_storeu_si512(at, v.a);
    _mm512_storeu_si512(at + 1, v.b);
    _mm512_storeu_si512(at + 2, v.c);
    _mm512_storeu_si512(at + 3, v.d);
}

void avl_pack_tile(const avl_packed *w, int64_t tile, const uint8_t *codes, const float *scales,
                   int64_t block)
{
    int64_t stride = w->outputs * w->bits / 8, count = w->outputs - tile * TILE;
    __mmask64 outputs = outputs_of(w, tile);
    codes += tile * TILE * w->bits / 8;
    for (int64_t s = 0; s < spans_of(w); s++) {
        uint8_t *piece = piece_of(w, tile, s);
        for (int64_t k = 0; k < w->span; k += 4) {
            const uint8_t *at = codes + (s * w->span + k) * stride;
            whole4 v = interleave(codes_at(at, w->bits, outputs),
                                  codes_at(at + stride, w->bits, outputs),
                                  codes_at(at + 2 * stride, w->bits, outputs),
                                  codes_at(at + 3 * stride, w->bits, outputs));
            if (w->bits == 8) {
                store4(piece + k * TILE, v);
                continue;
            }
            uint8_t *to = piece + k * TILE / 2;
            _mm512_storeu_si512(to, _mm512_or_si512(v.a, _mm512_slli_epi16(v.b, 4)));
            _mm512_storeu_si512(to + 64, _mm512_or_si512(v.c, _mm512_slli_epi16(v.d, 4)));
        }
        float *to = (float *)(piece + codes_bytes(w));
        memset(to, 0, TILE * sizeof(float));
        memcpy(to, scales + s * w->span / block * w->outputs + tile * TILE,
               (size_t)(count < TILE ? count : TILE) * sizeof(float));
    }
}

void avl_round_row(const avl_packed *w, const float *x, const avl_rounded *to, int64_t row)
{
    x += row * w->inputs;
    int8_t *codes = to->codes + row * w->inputs;
    for (int64_t s = 0; s < spans_of(w); s++, x += w->span, codes += w->span) {
        __m512 top = _mm512_setzero_ps();
        __mmask16 not_numbers = 0;
        for (int64_t i = 0; i < w->span; i += 16) {
            __m512 v = _mm512_loadu_ps(x + i);
            top = _mm512_max_ps(top, _mm512_abs_ps(v));
            not_numbers |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        }
        float greatest = not_numbers ? NAN : _mm512_reduce_max_ps(top);
        __m512 factor = _mm512_set1_ps(greatest > SMALLEST ? 127.0f / greatest : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < w->span; i += 16) {
            __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
            sum = _mm512_add_epi32(sum, code);
            _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtsepi32_epi8(code));
        }
        int64_t at = row * spans_of(w) + s;
        to->scales[at] = greatest / 127.0f;
        to->shifts[at] = -(1 << (w->bits - 1)) * _mm512_reduce_add_epi32(sum);
    }
}

// A piece's codes of four inputs, which are at `at`.
HELPER whole4 load_codes(const uint8_t *at, int64_t bits)
{
    __m512i p = _mm512_loadu_si512(at), q = _mm512_loadu_si512(at + 64);
    if (bits == 8)
        return (whole4){p, q, _mm512_loadu_si512(at + 128), _mm512_loadu_si512(at + 192)};
    __m512i low = _mm512_set1_epi8(15);
    return (whole4){_mm512_and_si512(p, low), _mm512_and_si512(_mm512_srli_epi16(p, 4), low),
                    _mm512_and_si512(q, low), _mm512_and_si512(_mm512_srli_epi16(q, 4), low)};
}

HELPER float4 load_floats(const float *at)
{
    return (float4){_mm512_loadu_ps(at), _mm512_loadu_ps(at + 16), _mm512_loadu_ps(at + 32),
                    _mm512_loadu_ps(at + 48)};
}

HELPER void store_floats(float *at, float4 v, __mmask64 outputs)
{
    _mm512_mask_storeu_ps(at, (__mmask16)outputs, v.a);
    _mm512_mask_storeu_ps(at + 16, (__mmask16)(outputs >> 16), v.b);
    _mm512_mask_storeu_ps(at + 32, (__mmask16)(outputs >> 32), v.c);
    _mm512_mask_storeu_ps(at + 48, (__mmask16)(outputs >> 48), v.d);
}

HELPER whole4 all_whole(int32_t value)
{
    __m512i v = _mm512_set1_epi32(value);
    return (whole4){v, v, v, v};
}

// sum + products of four inputs' codes with four codes of x.
HELPER whole4 add_products(whole4 sum, whole4 codes, const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    __m512i v = _mm512_set1_epi32(four);
    return (whole4){
        _mm512_dpbusd_epi32(sum.a, codes.a, v), _mm512_dpbusd_epi32(sum.b, codes.b, v),
        _mm512_dpbusd_epi32(sum.c, codes.c, v), _mm512_dpbusd_epi32(sum.d, codes.d, v)};
}

// to + a span's sum in units of its scales.
HELPER float4 add_span(float4 to, whole4 sum, float4 scales, float x_scale)
{
    __m512 v = _mm512_set1_ps(x_scale);
    return (float4){_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum.a), _mm512_mul_ps(scales.a, v), to.a),
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum.b), _mm512_mul_ps(scales.b, v), to.b),
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum.c), _mm512_mul_ps(scales.c, v), to.c),
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum.d), _mm512_mul_ps(scales.d, v), to.d)};
}

// One row, or two, with sums in registers: a tile streams through once.
HELPER void multiply_few(const avl_packed *w, const avl_rounded *x, int64_t tile, int64_t row,
                         int two, float *y, int64_t bits)
{
    int64_t spans = spans_of(w), first = row * spans, second = first + (two ? spans : 0);
    const int8_t *p = x->codes + row * w->inputs, *q = p + (two ? w->inputs : 0);
    __m512 zero = _mm512_setzero_ps();
    float4 y0 = {zero, zero, zero, zero}, y1 = y0;
    for (int64_t s = 0; s < spans; s++) {
        const uint8_t *piece = piece_of(w, tile, s);
        whole4 sum0 = all_whole(x->shifts[first + s]), sum1 = all_whole(x->shifts[second + s]);
        for (int64_t k = 0; k < w->span; k += 4, p += 4, q += 4) {
            whole4 codes = load_codes(piece + k * TILE * bits / 8, bits);
            sum0 = add_products(sum0, codes, p);
            if (two)
                sum1 = add_products(sum1, codes, q);
        }
        float4 scales = load_floats(scales_of(w, piece));
        y0 = add_span(y0, sum0, scales, x->scales[first + s]);
        if (two)
            y1 = add_span(y1, sum1, scales, x->scales[second + s]);
    }
    y += row * w->outputs + tile * TILE;
    store_floats(y, y0, outputs_of(w, tile));
    if (two)
        store_floats(y + w->outputs, y1, outputs_of(w, tile));
}

// A span of one row: sums [TILE] grow by it. Its codes are bytes.
HELPER void add_row(const avl_packed *w, const avl_rounded *x, int64_t row, int64_t s,
                    const uint8_t *codes, float4 scales, float *sums)
{
    int64_t at = row * spans_of(w) + s;
    const int8_t *from = x->codes + row * w->inputs + s * w->span;
    whole4 sum = all_whole(x->shifts[at]);
    for (int64_t k = 0; k < w->span; k += 4)
        sum = add_products(sum, load_codes(codes + k * TILE, 8), from + k);
    store_floats(sums, add_span(load_floats(sums), sum, scales, x->scales[at]), ~(__mmask64)0);
}

// The same of four rows, whose sums fill the registers: four times as much is done with a load.
HELPER void add_four_rows(const avl_packed *w, const avl_rounded *x, int64_t row, int64_t s,
                          const uint8_t *codes, float4 scales, float *sums)
{
    int64_t spans = spans_of(w), inputs = w->inputs, at = row * spans + s;
    const int8_t *from = x->codes + row * inputs + s * w->span;
    const int32_t *shifts = x->shifts + at;
    whole4 sum0 = all_whole(shifts[0]), sum1 = all_whole(shifts[spans]);
    whole4 sum2 = all_whole(shifts[2 * spans]), sum3 = all_whole(shifts[3 * spans]);
    for (int64_t k = 0; k < w->span; k += 4) {
        whole4 four = load_codes(codes + k * TILE, 8);
        sum0 = add_products(sum0, four, from + k);
        sum1 = add_products(sum1, four, from + inputs + k);
        sum2 = add_products(sum2, four, from + 2 * inputs + k);
        sum3 = add_products(sum3, four, from + 3 * inputs + k);
    }
    const whole4 found[4] = {sum0, sum1, sum2, sum3};
    for (int64_t i = 0; i < 4; i++, sums += TILE)
        store_floats(sums, add_span(load_floats(sums), found[i], scales, x->scales[at + i * spans]),
                     ~(__mmask64)0);
}

// Up to MANY rows: a span's codes become bytes once for all of them.
HELPER void multiply_many(const avl_packed *w, const avl_rounded *x, int64_t tile, int64_t first,
                          int64_t end, float *y, int64_t bits)
{
    float sums[MANY * TILE];
    uint8_t unpacked[LONGEST * TILE];
    memset(sums, 0, (size_t)(end - first) * TILE * sizeof(float));
    for (int64_t s = 0; s < spans_of(w); s++) {
        const uint8_t *piece = piece_of(w, tile, s), *codes = bits == 8 ? piece : unpacked;
        for (int64_t k = 0; bits != 8 && k < w->span; k += 4)
            store4(unpacked + k * TILE, load_codes(piece + k * TILE * bits / 8, bits));
        float4 scales = load_floats(scales_of(w, piece));
        int64_t row = first;
        for (; row + 4 <= end; row += 4)
            add_four_rows(w, x, row, s, codes, scales, sums + (row - first) * TILE);
        for (; row < end; row++)
            add_row(w, x, row, s, codes, scales, sums + (row - first) * TILE);
    }
    for (int64_t row = first; row < end; row++)
        store_floats(y + row * w->outputs + tile * TILE, load_floats(sums + (row - first) * TILE),
                     outputs_of(w, tile));
}

HELPER void multiply(const avl_packed *w, const avl_rounded *x, int64_t tile, float *y, int64_t bits)
{
    int64_t row = 0;
    for (; x->rows > FEW && row < x->rows; row += MANY)
        multiply_many(w, x, tile, row, x->rows - row < MANY ? x->rows : row + MANY, y, bits);
    for (; row + 2 <= x->rows; row += 2)
        multiply_few(w, x, tile, row, 1, y, bits);
    if (row < x->rows)
        multiply_few(w, x, tile, row, 0, y, bits);
}

void avl_multiply_tile(const avl_packed *w, const avl_rounded *x, int64_t tile, float *y)
{
    if (w->bits == 4)
        multiply(w, x, tile, y, 4);
    else
        multiply(w, x, tile, y, 8);
}
