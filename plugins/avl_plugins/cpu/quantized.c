#include "quantized.h"

#if defined(AVL_UNKNOWN) // to the compiler

const avl_quantized_kernels *const AVL_LEVEL = NULL;

#else

#include "packing.h"

#define EACH_HELD(r) _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)

enum {
    FEW = 4,    // rows up to which sums stay in registers, where those hold two alone
    MOST_FOURS = 16, // rows of which INT4 multiplies four at a time, where registers hold those
    AHEAD = 4096, // bytes of codes of 4 bits that are on their way from memory
    MANY = 128, // rows whose sums are kept at a time: they fill the first cache
};

// A tile's codes of four inputs, its sums, and the same in float32.
typedef struct {
    bytes of[QUARTERS];
} codes4;
typedef struct {
    whole of[QUARTERS];
} whole4;
typedef struct {
    floats of[QUARTERS];
} floats4;

// A piece's codes of four inputs, which are at `at`.
HELPER codes4 load_codes(const uint8_t *at, int64_t bits)
{
    codes4 loaded;
    if (bits == 8)
        EACH_QUARTER(f) loaded.of[f] = *(const bytes *)(at + f * QUARTER);
    else
        EACH_QUARTER(f) {
            bytes both = *(const bytes *)(at + f / 2 * QUARTER);
            loaded.of[f] = both >> (f % 2 ? 4 : 0) & 15;
        }
    return loaded;
}

HELPER void store_codes(uint8_t *at, codes4 codes)
{
    EACH_QUARTER(f) *(bytes *)(at + f * QUARTER) = codes.of[f];
}

HELPER floats4 load_floats(const float *at)
{
    floats4 loaded;
    EACH_QUARTER(f) loaded.of[f] = *(const floats *)(at + f * LANES);
    return loaded;
}

HELPER void store_floats(float *at, floats4 v)
{
    EACH_QUARTER(f) *(floats *)(at + f * LANES) = v.of[f];
}

// The same, of the outputs that there are.
HELPER void store_outputs(float *at, floats4 v, int64_t outputs)
{
    float all[TILE];
    if (outputs == TILE) {
        store_floats(at, v);
    } else {
        store_floats(all, v);
        memcpy(at, all, (size_t)outputs * sizeof *all);
    }
}

HELPER whole all_of(int32_t number) { return (whole){0} + number; }

// What a span's sum begins with: codes are too large by what they are for 0, all by the same, unless
// zero points tell by how much.
HELPER whole4 start_of(const avl_packed *w, int32_t x_sum, int64_t bits)
{
    whole4 start;
    const int32_t zero = bits == 8 ? FLIPPED : 8;
    EACH_QUARTER(f) start.of[f] = all_of(w->has_zeros ? 0 : -zero * x_sum);
    return start;
}

// A span's sum without what its zero points add.
HELPER whole4 end_of(const avl_packed *w, whole4 sum, const uint8_t *piece, int32_t x_sum)
{
    if (w->has_zeros)
        EACH_QUARTER(f) sum.of[f] -= zeros_of(w, piece, f) * x_sum;
    return sum;
}

// sum + products of four inputs' codes with four codes of x.
HELPER whole4 add_products(whole4 sum, codes4 codes, const int8_t *x, int64_t bits)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    EACH_QUARTER(f) sum.of[f] = add_dots(sum.of[f], codes.of[f], four, bits);
    return sum;
}

HELPER floats4 load_scales(const avl_packed *w, const uint8_t *piece)
{
    floats4 loaded;
    EACH_QUARTER(f) loaded.of[f] = scales_of(w, piece, f);
    return loaded;
}

// to + a span's sum in units of its scales.
HELPER floats4 add_span(floats4 to, whole4 sum, floats4 scales, float x_scale)
{
    EACH_QUARTER(f) to.of[f] += __builtin_convertvector(sum.of[f], floats) * (scales.of[f] * x_scale);
    return to;
}

static int64_t tiles(const avl_packed *w) { return (w->outputs + TILE - 1) / TILE; }

// Begins to read what follows a piece, AHEAD bytes on: a thread waits less. Codes of 8 bits come as fast
// by themselves.
HELPER void fetch_ahead(const avl_packed *w, const uint8_t *piece, int64_t bits)
{
    for (int64_t i = 0; bits == 4 && i < piece_bytes(w); i += 64)
        __builtin_prefetch(piece + AHEAD + i, 0, 2);
}

// Some rows' part of what all rows ask for of a piece that is read next.
HELPER void fetch_part(const avl_packed *w, const uint8_t *piece, int64_t row, int64_t rows,
                       int64_t all)
{
    const int64_t bytes = piece_bytes(w), end = bytes * (row + rows) / all;
    for (int64_t i = bytes * row / all; i < end; i += 64) // a line of the caches
        __builtin_prefetch(piece + i, 0, 2);
}

// Up to HELD rows, with a span's sums in registers: a tile streams through once.
HELPER void multiply_few(const avl_packed *w, const avl_rounded *x, int64_t tile, int64_t row,
                         int rows, float *y, int64_t bits)
{
    floats4 totals[HELD] = {0};
    for (int64_t s = 0; s < spans_of(w); s++) {
        const int64_t at = s * x->rows + row;
        const int8_t *from = x->codes + at * w->span;
        const uint8_t *piece = piece_of(w, tile, s);
        if (rows == x->rows)
            fetch_ahead(w, piece, bits);
        else if (tile + 1 < tiles(w)) // the first rows wait for memory, the rest do not
            fetch_part(w, piece_of(w, tile + 1, s), row, rows, x->rows);
        whole4 sums[HELD];
        EACH_HELD(r) sums[r] = start_of(w, x->sums[at + r], bits);
        for (int64_t k = 0; k < w->span; k += 4) {
            const codes4 codes = load_codes(piece + k * TILE * bits / 8, bits);
            EACH_HELD(r) sums[r] = add_products(sums[r], codes, from + r * w->span + k, bits);
        }
        const floats4 scales = load_scales(w, piece);
        EACH_HELD(r) {
            const whole4 sum = end_of(w, sums[r], piece, x->sums[at + r]);
            totals[r] = add_span(totals[r], sum, scales, x->scales[at + r]);
        }
    }
    y += row * w->outputs + tile * TILE;
    EACH_HELD(r) store_outputs(y + r * w->outputs, totals[r], outputs_of(w, tile));
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "matrix_neon.h"
#else

// What a span of some rows is multiplied from, for many rows: its codes, as bytes.
HELPER const uint8_t *unpack(const avl_packed *w, const uint8_t *piece, uint8_t *to, int64_t bits)
{
    if (bits == 8)
        return piece;
    for (int64_t k = 0; k < w->span; k += 4)
        store_codes(to + k * TILE, load_codes(piece + k * TILE * bits / 8, bits));
    return to;
}

// sums[r] + products of a span with row r of some.
HELPER void add_rows(const avl_packed *w, const int8_t *x, int rows, const uint8_t *codes,
                     whole4 sums[TOGETHER], int64_t bits)
{
    for (int64_t k = 0; k < w->span; k += 4) {
        codes4 four = load_codes(codes + k * TILE, 8);
        _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)
            sums[r] = add_products(sums[r], four, x + r * w->span + k, bits);
    }
}

#endif

// The sums [rows, TILE] of a few rows grow by a span; so many of them share what is loaded.
HELPER void add_piece(const avl_packed *w, const avl_rounded *x, int64_t row, int rows, int64_t s,
                      const uint8_t *piece, const uint8_t *codes, float *to, int64_t bits)
{
    const int64_t at = s * x->rows + row;
    whole4 sums[TOGETHER];
    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)
        sums[r] = start_of(w, x->sums[at + r], bits);
    add_rows(w, x->codes + at * w->span, rows, codes, sums, bits);
    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
        whole4 sum = end_of(w, sums[r], piece, x->sums[at + r]);
        float *own = to + r * TILE;
        store_floats(own, add_span(load_floats(own), sum, load_scales(w, piece), x->scales[at + r]));
    }
}

// Up to MANY rows: a span's codes become bytes once for all of them.
HELPER void multiply_many(const avl_packed *w, const avl_rounded *x, int64_t tile, int64_t first,
                          int64_t end, float *y, int64_t bits)
{
    float sums[MANY * TILE];
    uint8_t unpacked[LONGEST * TILE];
    memset(sums, 0, (size_t)(end - first) * TILE * sizeof(float));
    for (int64_t s = 0; s < spans_of(w); s++) {
        const uint8_t *piece = piece_of(w, tile, s), *codes = unpack(w, piece, unpacked, bits);
        int64_t row = first;
        for (; row + TOGETHER <= end; row += TOGETHER)
            add_piece(w, x, row, TOGETHER, s, piece, codes, sums + (row - first) * TILE, bits);
        for (; row < end; row++)
            add_piece(w, x, row, 1, s, piece, codes, sums + (row - first) * TILE, bits);
    }
    for (int64_t row = first; row < end; row++)
        store_outputs(y + row * w->outputs + tile * TILE, load_floats(sums + (row - first) * TILE),
                      outputs_of(w, tile));
}

// How many of more than two rows come next: 4, or 3 where no row is left alone then, and for many rows
// and codes of 4 bits, which are as fast with all sums in registers.
HELPER int64_t next_of(int64_t left, int64_t bits)
{
    const int odd = left == 3 || left == 5 || left == 6 || left == 9;
    return odd || (bits == 4 && left > MOST_FOURS) ? 3 : 4;
}

HELPER void multiply(const avl_packed *w, const avl_rounded *x, int64_t tile, float *y, int64_t bits)
{
    int64_t row = 0;
    for (; HELD < 3 && x->rows > FEW && row < x->rows; row += MANY)
        multiply_many(w, x, tile, row, x->rows - row < MANY ? x->rows : row + MANY, y, bits);
    for (int64_t left; HELD == 4 && (left = x->rows - row) > 2; row += next_of(left, bits))
        if (next_of(left, bits) == 4)
            multiply_few(w, x, tile, row, 4, y, bits);
        else
            multiply_few(w, x, tile, row, 3, y, bits);
    for (; row + 2 <= x->rows; row += 2)
        multiply_few(w, x, tile, row, 2, y, bits);
    if (row < x->rows)
        multiply_few(w, x, tile, row, 1, y, bits);
}

static void multiply_tile(const avl_packed *w, const avl_rounded *x, int64_t tile, float *y)
{
    if (w->bits == 4)
        multiply(w, x, tile, y, 4);
    else
        multiply(w, x, tile, y, 8);
}

static int64_t packed_bytes(const avl_packed *w) { return tiles(w) * spans_of(w) * piece_bytes(w); }

static const avl_quantized_kernels kernels = {TILE,      tiles,     packed_bytes,
                                              pack_tile, round_row, multiply_tile};
const avl_quantized_kernels *const AVL_LEVEL = &kernels;

#endif
