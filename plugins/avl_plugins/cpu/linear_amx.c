#include "linear_amx.h"

#if defined(AVL_AMX) // build.py: compilers do not agree on a macro of their own

#include "amx_product.h"

// 16 elements of a row as float32.
HELPER __m512 floats_of(const char *row, int64_t at, avl_element element)
{
    const char *from = row + at * avl_size_of(element);
    if (element == AVL_SINGLE)
        return _mm512_loadu_ps(from);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)from));
}

// Inputs [at, at + STEP) of an output as bf16; there are a multiple of SIDE.
HELPER __m512i step_of(const avl_stored *w, const char *row, int64_t at, avl_element element)
{
    const int whole = at + STEP <= w->inputs;
    if (element == AVL_BFLOAT)
        return _mm512_maskz_loadu_epi16(whole ? ~0u : 0xffff, row + at * 2);
    __m512 second = whole ? floats_of(row, at + SIDE, element) : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(second, floats_of(row, at, element));
}

HELPER void widen_elements(const avl_stored *w, int64_t tile, int64_t first, int64_t count, panel to,
                           avl_element element)
{
    const int64_t bytes = w->inputs * avl_size_of(element);
    for (int f = 0; f < FIELDS; f++) {
        const int64_t output = tile * AVL_AMX_TILE + f * SIDE, left = w->outputs - output;
        const char *rows = (const char *)w->data + output * bytes;
        for (int64_t k = 0; k < count; k += STEP) {
            __m512i pairs[SIDE];
            for (int64_t r = 0; r < SIDE; r++)
                pairs[r] = r < left ? step_of(w, rows + r * bytes, first + k, element)
                                    : _mm512_setzero_si512();
            avl_transpose(pairs);
            for (int64_t r = 0; r < SIDE; r++)
                _mm512_store_si512(to[f][k / STEP] + r * STEP, pairs[r]);
        }
    }
}

static void widen(const void *weight, int64_t tile, int64_t first, int64_t count, panel to)
{
    const avl_stored *w = weight;
    if (w->element == AVL_BFLOAT)
        widen_elements(w, tile, first, count, to, AVL_BFLOAT);
    else if (w->element == AVL_HALF)
        widen_elements(w, tile, first, count, to, AVL_HALF);
    else
        widen_elements(w, tile, first, count, to, AVL_SINGLE);
}

static void multiply_stored(const avl_stored *weight, const avl_amx_rows *x, int64_t tile, float *y)
{
    multiply_all(weight, widen, x, weight->outputs, tile, y);
}

// Rows become matrices [HALVES][inputs / STEP][SIDE][STEP].
static void round_group(const float *x, const avl_amx_rows *to, int64_t group)
{
    const int64_t depth = avl_amx_depth(to->inputs);
    for (int64_t r = 0; r < AVL_AMX_GROUP; r++) {
        int64_t row = group * AVL_AMX_GROUP + r;
        uint16_t *at = to->values + group * AVL_AMX_GROUP * depth + r / SIDE * SIDE * depth;
        const float *from = x + row * to->inputs;
        for (int64_t k = 0; k < depth; k += STEP) {
            __m512i pairs = _mm512_setzero_si512();
            if (row < to->rows) {
                __m512 second = k + STEP <= to->inputs ? _mm512_loadu_ps(from + k + SIDE)
                                                       : _mm512_setzero_ps();
                pairs = (__m512i)_mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(from + k));
            }
            _mm512_store_si512(at + k * SIDE + r % SIDE * STEP, pairs);
        }
    }
}

static const avl_amx_kernels kernels = {round_group, avl_amx_begin, avl_amx_end,
                                        avl_multiply_packed_on_amx, multiply_stored};
const avl_amx_kernels *const avl_amx = &kernels;

#else

const avl_amx_kernels *const avl_amx = NULL;

#endif
