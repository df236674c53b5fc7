#include "pieces.h"

#include <string.h>

enum {
    FEW = 4,       // rows up to which a weight is read for two rows at a time
    MANY = 256,    // rows whose sums are kept at a time
    LONGEST = 128, // inputs of a span
};

// A tile's outputs; a field has 16.
typedef struct {
    __m512 a, b, c, d;
} float4;

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

// What a span's sum begins with: codes have no sign, so that every one is too large by the same,
// unless zero points tell by how much.
HELPER whole4 start_of(const avl_packed *w, int32_t x_sum)
{
    __m512i v = _mm512_set1_epi32(w->has_zeros ? 0 : -(1 << (w->bits - 1)) * x_sum);
    return (whole4){v, v, v, v};
}

// A span's sum without what its zero points add.
HELPER whole4 end_of(const avl_packed *w, whole4 sum, const uint8_t *piece, int32_t x_sum)
{
    if (!w->has_zeros)
        return sum;
    const int32_t *zeros = zeros_of(w, piece);
    __m512i v = _mm512_set1_epi32(x_sum);
    return (whole4){
        _mm512_sub_epi32(sum.a, _mm512_mullo_epi32(_mm512_loadu_si512(zeros), v)),
        _mm512_sub_epi32(sum.b, _mm512_mullo_epi32(_mm512_loadu_si512(zeros + 16), v)),
        _mm512_sub_epi32(sum.c, _mm512_mullo_epi32(_mm512_loadu_si512(zeros + 32), v)),
        _mm512_sub_epi32(sum.d, _mm512_mullo_epi32(_mm512_loadu_si512(zeros + 48), v))};
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
        whole4 sum0 = start_of(w, x->sums[first + s]), sum1 = start_of(w, x->sums[second + s]);
        for (int64_t k = 0; k < w->span; k += 4, p += 4, q += 4) {
            whole4 codes = load_codes(piece + k * TILE * bits / 8, bits);
            sum0 = add_products(sum0, codes, p);
            if (two)
                sum1 = add_products(sum1, codes, q);
        }
        float4 scales = load_floats(scales_of(w, piece));
        sum0 = end_of(w, sum0, piece, x->sums[first + s]);
        sum1 = end_of(w, sum1, piece, x->sums[second + s]);
        y0 = add_span(y0, sum0, scales, x->scales[first + s]);
        if (two)
            y1 = add_span(y1, sum1, scales, x->scales[second + s]);
    }
    y += row * w->outputs + tile * TILE;
    store_floats(y, y0, outputs_of(w, tile));
    if (two)
        store_floats(y + w->outputs, y1, outputs_of(w, tile));
}

// The sums [TILE] of a row grow by a span.
HELPER void add_to(float *sums, const avl_packed *w, const avl_rounded *x, int64_t at, whole4 sum,
                   const uint8_t *piece)
{
    sum = end_of(w, sum, piece, x->sums[at]);
    float4 scales = load_floats(scales_of(w, piece));
    store_floats(sums, add_span(load_floats(sums), sum, scales, x->scales[at]), ~(__mmask64)0);
}

// A span of one row; `codes` are those of the piece as bytes.
HELPER void add_row(const avl_packed *w, const avl_rounded *x, int64_t row, int64_t s,
                    const uint8_t *piece, const uint8_t *codes, float *sums)
{
    int64_t at = row * spans_of(w) + s;
    const int8_t *from = x->codes + row * w->inputs + s * w->span;
    whole4 sum = start_of(w, x->sums[at]);
    for (int64_t k = 0; k < w->span; k += 4)
        sum = add_products(sum, load_codes(codes + k * TILE, 8), from + k);
    add_to(sums, w, x, at, sum, piece);
}

// The same of four rows, whose sums fill the registers: four times as much is done with a load.
HELPER void add_four_rows(const avl_packed *w, const avl_rounded *x, int64_t row, int64_t s,
                          const uint8_t *piece, const uint8_t *codes, float *sums)
{
    int64_t spans = spans_of(w), inputs = w->inputs, at = row * spans + s;
    const int8_t *from = x->codes + row * inputs + s * w->span;
    whole4 sum0 = start_of(w, x->sums[at]), sum1 = start_of(w, x->sums[at + spans]);
    whole4 sum2 = start_of(w, x->sums[at + 2 * spans]);
    whole4 sum3 = start_of(w, x->sums[at + 3 * spans]);
    for (int64_t k = 0; k < w->span; k += 4) {
        whole4 four = load_codes(codes + k * TILE, 8);
        sum0 = add_products(sum0, four, from + k);
        sum1 = add_products(sum1, four, from + inputs + k);
        sum2 = add_products(sum2, four, from + 2 * inputs + k);
        sum3 = add_products(sum3, four, from + 3 * inputs + k);
    }
    add_to(sums, w, x, at, sum0, piece);
    add_to(sums + TILE, w, x, at + spans, sum1, piece);
    add_to(sums + 2 * TILE, w, x, at + 2 * spans, sum2, piece);
    add_to(sums + 3 * TILE, w, x, at + 3 * spans, sum3, piece);
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
        int64_t row = first;
        for (; row + 4 <= end; row += 4)
            add_four_rows(w, x, row, s, piece, codes, sums + (row - first) * TILE);
        for (; row < end; row++)
            add_row(w, x, row, s, piece, codes, sums + (row - first) * TILE);
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
