#include "pieces.h"

#include <float.h>
#include <math.h>

// Spans of x with nothing larger are taken for zeros: 127 over it would be infinite. So are those
// with something infinite or no number, which their scale then is too, and with it what they add.
#define SMALLEST (127.0f / FLT_MAX)

int64_t avl_tiles(const avl_packed *w) { return (w->outputs + TILE - 1) / TILE; }

int64_t avl_packed_bytes(const avl_packed *w) { return avl_tiles(w) * spans_of(w) * piece_bytes(w); }

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

// Scales of a tile's span and, if there are any, its zero points; both are rows [outputs].
HELPER void pack_scales(const avl_packed *w, int64_t tile, uint8_t *piece, const float *scales,
                        const uint8_t *zeros)
{
    __mmask64 outputs = outputs_of(w, tile);
    for (int i = 0; i < TILE; i += 16) {
        float *to = (float *)scales_of(w, piece) + i;
        __mmask16 some = (__mmask16)(outputs >> i);
        _mm512_storeu_ps(to, _mm512_maskz_loadu_ps(some, scales + tile * TILE + i));
    }
    if (!w->has_zeros)
        return;
    __m512i codes = codes_at(zeros + tile * TILE * w->bits / 8, w->bits, outputs);
    uint8_t all[TILE];
    _mm512_storeu_si512(all, codes);
    for (int i = 0; i < TILE; i++)
        ((int32_t *)zeros_of(w, piece))[i] = all[i];
}

void avl_pack_tile(const avl_packed *w, int64_t tile, const uint8_t *codes, const float *scales,
                   const uint8_t *zeros, int64_t block)
{
    int64_t stride = w->outputs * w->bits / 8;
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
        int64_t from = s * w->span / block;
        pack_scales(w, tile, piece, scales + from * w->outputs,
                    w->has_zeros ? zeros + from * stride : NULL);
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
        __mmask16 some = greatest > SMALLEST && greatest <= FLT_MAX ? 0xffff : 0;
        __m512 factor = _mm512_set1_ps(127.0f / greatest);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < w->span; i += 16) {
            __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
            __m512i code = _mm512_maskz_cvtps_epi32(some, scaled);
            sum = _mm512_add_epi32(sum, code);
            _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtsepi32_epi8(code));
        }
        int64_t at = row * spans_of(w) + s;
        to->scales[at] = greatest / 127.0f;
        to->sums[at] = _mm512_reduce_add_epi32(sum);
    }
}
