// Weights of codes, packed and as experts have them, beside products in float64 of rows that are
// rounded here.
#include "check.h"

#include "halves.h"
#include "levels.h"

#include <math.h>
#include <string.h>

enum { MOST_INPUTS = 640 };

// A weight as the op has it, without blocks that span more than they do when packed.
typedef struct {
    int64_t inputs, outputs, bits, block;
    const uint8_t *codes, *zeros; // no zero points: NULL
    const float *scales;
    int halves; // whether 16 bits hold the scales
} source;

static const uint8_t *any_bytes(int64_t count)
{
    uint8_t *made = (uint8_t *)numbers(count / 4 + 1);
    for (int64_t i = 0; i < count; i++)
        made[i] = (uint8_t)any_whole(0, 255);
    return made;
}

static source any_source(int64_t inputs, int64_t outputs, int64_t bits, int64_t block, int zeros,
                         int halves)
{
    float *scales = numbers(inputs / block * outputs);
    for (int64_t i = 0; halves && i < inputs / block * outputs; i++)
        scales[i] = of_half(to_half(scales[i]));
    source s = {inputs, outputs, bits, block, NULL, NULL, scales, halves};
    s.codes = any_bytes(inputs * outputs * bits / 8);
    if (zeros)
        s.zeros = any_bytes(inputs / block * outputs * bits / 8);
    return s;
}

// A signed code of a table [rows, outputs].
static int code_at(const source *s, const uint8_t *table, int64_t row, int64_t output)
{
    int64_t at = row * s->outputs + output;
    if (s->bits == 8)
        return ((const int8_t *)table)[at];
    int half = table[at / 2] >> (at % 2 ? 4 : 0) & 15;
    return half < 8 ? half : half - 16;
}

static double weight_at(const source *s, int64_t input, int64_t output)
{
    int64_t row = input / s->block;
    int zero = s->zeros ? code_at(s, s->zeros, row, output) : 0;
    return (code_at(s, s->codes, input, output) - zero) *
           (double)s->scales[row * s->outputs + output];
}

// What a row is rounded to, with a scale for each span.
static void round_here(const float *x, int64_t inputs, int64_t span, double *to)
{
    for (int64_t k = 0; k < inputs; k += span) {
        float top = 0;
        for (int64_t i = k; i < k + span; i++)
            top = fmaxf(top, fabsf(x[i]));
        for (int64_t i = k; i < k + span; i++) {
            float scaled = x[i] * (127.0f / top);
            to[i] = top > 0 ? rint(scaled) * (double)top / 127 : 0;
        }
    }
}

static void check(const source *s, int64_t rows)
{
    const avl_quantized_kernels *with = avl_best_quantized();
    avl_packed w = {.inputs = s->inputs, .outputs = s->outputs, .span = 128, .bits = s->bits,
                    .has_zeros = s->zeros != NULL, .has_halves = s->halves};
    while (s->block % w.span)
        w.span /= 2;
    int64_t spans = s->inputs / w.span;
    w.pieces = (uint8_t *)results(with->bytes(&w) / 4);
    for (int64_t tile = 0; tile < with->tiles(&w); tile++)
        with->pack(&w, tile, s->codes, s->scales, s->zeros, s->block);
    float *x = numbers(rows * s->inputs), *y = results(rows * s->outputs);
    memset(x, 0, (size_t)w.span * sizeof *x); // a span without any
    avl_rounded rounded = {rows, (int8_t *)results(rows * s->inputs / 4 + 1),
                           results(rows * spans), (int32_t *)results(rows * spans)};
    for (int64_t r = 0; r < rows; r++)
        with->round(&w, x, &rounded, r);
    for (int64_t tile = 0; tile < with->tiles(&w); tile++)
        with->multiply(&w, &rounded, tile, y);
    for (int64_t r = 0; r < rows; r++) {
        double near[MOST_INPUTS];
        round_here(x + r * s->inputs, s->inputs, w.span, near);
        for (int64_t i = 0; i < s->outputs; i++) {
            double wanted = 0, size = 0;
            for (int64_t k = 0; k < s->inputs; k++) {
                double term = near[k] * weight_at(s, k, i);
                wanted += term;
                size += fabs(term);
            }
            expect("quantized linear", y[r * s->outputs + i], wanted, ldexp(size, -21));
        }
    }
}

// A code of a table [outputs, inputs].
static int straight_code(const source *s, int64_t output, int64_t input)
{
    const source rows = {s->outputs, s->inputs, s->bits, s->block, NULL, NULL, NULL, 0};
    return code_at(&rows, s->codes, output, input);
}

// The same codes with outputs first, multiplied with every second row and the first again.
static void check_coded(const source *s, int64_t rows)
{
    const avl_quantized_kernels *rounding = avl_best_quantized();
    const avl_coded_kernels *with = avl_best_coded();
    avl_coded w = {s->inputs, s->outputs, s->block, 128, s->bits, s->codes, s->scales};
    while (s->block % w.span)
        w.span /= 2;
    const avl_packed form = {.inputs = s->inputs, .outputs = s->outputs, .span = w.span};
    const int64_t spans = s->inputs / w.span, blocks = s->inputs / s->block;
    const int64_t count = (rows + 1) / 2 + 1;
    float *x = numbers(rows * s->inputs), *y = results(count * s->outputs);
    int64_t which[MOST_INPUTS] = {0};
    avl_coded_rows rounded = {(int8_t *)results(rows * s->inputs / 4 + 1), results(rows * spans),
                              (int32_t *)results(rows * spans)};
    for (int64_t r = 0; r < rows; r++) {
        avl_rounded one = {1, rounded.codes + r * s->inputs, rounded.scales + r * spans,
                           rounded.sums + r * spans};
        rounding->round(&form, x + r * s->inputs, &one, 0);
        with->order(&w, one.codes);
    }
    for (int64_t r = 0; r + 1 < count; r++)
        which[r] = 2 * r;
    with->multiply(&w, &rounded, which, count, 0, s->outputs / 2, y);
    with->multiply(&w, &rounded, which, count, s->outputs / 2, s->outputs, y);
    for (int64_t r = 0; r < count; r++) {
        double near[MOST_INPUTS];
        round_here(x + which[r] * s->inputs, s->inputs, w.span, near);
        for (int64_t i = 0; i < s->outputs; i++) {
            double wanted = 0, size = 0;
            for (int64_t k = 0; k < s->inputs; k++) {
                const double scale = s->scales[i * blocks + k / s->block];
                const double term = near[k] * straight_code(s, i, k) * scale;
                wanted += term;
                size += fabs(term);
            }
            expect("expert in codes", y[r * s->outputs + i], wanted, ldexp(size, -21));
        }
    }
}

void check_quantized(void)
{
    static const int64_t blocks[] = {32, 64, 96, 128, 640}, rows[] = {1, 2, 3, 5, 8, 11};
    if (!avl_best_quantized())
        return;
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (int64_t bits = 4; bits <= 8; bits += 4)
                for (int form = 0; form < 4; form++) {
                    int zeros = form & 1, halves = form >> 1;
                    int64_t inputs = blocks[b] == 640 ? 640 : blocks[b] * any_whole(1, 3);
                    int64_t outputs = 2 * any_whole(1, 40);
                    source s = any_source(inputs, outputs, bits, blocks[b], zeros, halves);
                    check(&s, rows[r]);
                    if (!form)
                        check_coded(&s, rows[r]);
                    forget();
                }
    source many = any_source(32, 6, 8, 32, 0, 1); // more rows than are summed at a time
    check(&many, 259);
    forget();
}
