// Few rows stream a weight through, one output after another, as memory is fastest in its own order;
// where rows are longer than a core's first cache, four outputs share what is read of them. For many
// rows, some outputs' weights are widened to float32 once and stay in the core's cache while rows are
// multiplied with them, a few rows and outputs at a time, whose sums fill the registers.
#include "widen.h"

#define UNROLL _Pragma("GCC unroll 8")

#define ROWS (REGISTERS == 32 ? 6 : 3) // multiplied at a time with OUTPUTS: sums fill the registers
#define OUTPUTS 4
#define FEW 4             // rows that a weight streams through for at a time
#define MOST_ROWS (ROWS > FEW ? ROWS : FEW)
#define STREAMED 16       // rows up to which it does: the second few find it in a cache
#define SUMS (LANES < 8 ? 8 : 4) // of one row and output, so that no sum waits for the one before
#define AHEAD 8192        // bytes read ahead into the second cache, for a row and weights of one byte
#define CACHED (24 << 10) // bytes of rows that stay in a core's first cache beside weights
#define TILE 16           // outputs widened at a time
#define BLOCK 1024        // inputs widened at a time

// Elements read ahead: the more is computed with each, the more have to be on their way from memory.
HELPER int64_t ahead_of(avl_element element, int rows)
{
    return AHEAD * rows / (avl_size_of(element) * avl_size_of(element));
}

HELPER void read_ahead(const char *row, int64_t at, avl_element element, int rows)
{
    __builtin_prefetch(row + (at + ahead_of(element, rows)) * avl_size_of(element), 0, 2);
}

// Rows of weights and what they are multiplied with.
typedef struct {
    const char *weights; // rows `weight_stride` bytes apart
    const float *x;      // rows `x_stride` apart
    float *y;            // rows `y_stride` apart
    int64_t weight_stride, x_stride, y_stride, inputs;
    int adds;    // whether the products are added to y
    int streams; // whether weights are read from memory, and not from a cache
} part;

// `rows` rows from `row` on with `outputs` outputs: OUTPUTS of them, or one.
HELPER void multiply_part(const part *p, avl_element element, int64_t row, int rows, int64_t output,
                          int outputs)
{
    const float *x = p->x + row * p->x_stride;
    const char *from = p->weights + output * p->weight_stride;
    float *y = p->y + row * p->y_stride + output;
    lanes sums[MOST_ROWS][OUTPUTS] = {0};
    for (int64_t k = 0; k < p->inputs; k += LANES) {
        lanes weights[OUTPUTS];
        UNROLL for (int i = 0; i < outputs; i++) {
            weights[i] = widen(from + i * p->weight_stride, k, element);
            if (p->streams) {
                // Where a row ends, the next one that is read is that of the next outputs.
                int ends = k + ahead_of(element, rows) >= p->inputs;
                int64_t next = ends ? i + outputs - 1 : i;
                read_ahead(from + next * p->weight_stride, k, element, rows);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            lanes v = *(const lanes *)(x + r * p->x_stride + k);
            UNROLL for (int i = 0; i < outputs; i++)
                sums[r][i] += v * weights[i];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        float *to = y + r * p->y_stride;
        if (outputs == OUTPUTS) {
            store_sums(to, totals(sums[r]), p->adds);
        } else {
            float sum = total(sums[r][0]);
            *to = p->adds ? *to + sum : sum;
        }
    }
}

HELPER void multiply_rows(const part *p, avl_element element, int64_t row, int rows, int64_t outputs)
{
    int64_t output = 0;
    for (; output + OUTPUTS <= outputs; output += OUTPUTS)
        multiply_part(p, element, row, rows, output, OUTPUTS);
    for (; output < outputs; output++)
        multiply_part(p, element, row, rows, output, 1);
}

HELPER void multiply_few(const avl_stored *w, avl_element element, const float *x, int rows,
                         int64_t first, int64_t end, float *y)
{
    if (rows * w->inputs * (int64_t)sizeof(float) > CACHED && rows > 1) {
        part all = {row_of(w, element, first), x, y + first, w->inputs * avl_size_of(element),
                    w->inputs, w->outputs, w->inputs, 0, 1};
        multiply_rows(&all, element, 0, rows, end - first);
        return;
    }
    const int count = rows == 1 ? SUMS : SUMS / 2;
    for (int64_t output = first; output < end; output++) {
        const char *row = row_of(w, element, output);
        lanes sums[FEW][SUMS] = {0};
        int64_t k = 0;
        for (; k + LANES * count <= w->inputs; k += LANES * count)
            UNROLL for (int i = 0; i < count; i++) {
                int64_t at = k + i * LANES;
                lanes weights = widen(row, at, element);
                read_ahead(row, at, element, rows);
                UNROLL for (int r = 0; r < rows; r++)
                    sums[r][i] += weights * *(const lanes *)(x + r * w->inputs + at);
            }
        for (; k < w->inputs; k += LANES) {
            lanes weights = widen(row, k, element);
            UNROLL for (int r = 0; r < rows; r++)
                sums[r][0] += weights * *(const lanes *)(x + r * w->inputs + k);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int i = 1; i < count; i++)
                sums[r][0] += sums[r][i];
            y[r * w->outputs + output] = total(sums[r][0]);
        }
    }
}

HELPER void multiply_many(const avl_stored *w, avl_element element, const float *x, int64_t rows,
                          int64_t first, int64_t end, float *y)
{
    float tile[TILE][BLOCK] __attribute__((aligned(64)));
    part p = {.weights = (const char *)tile, .weight_stride = sizeof *tile, .x_stride = w->inputs,
              .y_stride = w->outputs};
    for (int64_t output = first; output < end; output += TILE) {
        int64_t outputs = least(TILE, end - output);
        for (int64_t k = 0; k < w->inputs; k += BLOCK) {
            p.inputs = least(BLOCK, w->inputs - k);
            p.x = x + k;
            p.y = y + output;
            p.adds = k > 0;
            for (int64_t i = 0; i < outputs; i++)
                for (int64_t j = 0; j < p.inputs; j += LANES)
                    *(lanes *)(tile[i] + j) = widen(row_of(w, element, output + i), k + j, element);
            int64_t row = 0;
            for (; row + ROWS <= rows; row += ROWS)
                multiply_rows(&p, AVL_SINGLE, row, ROWS, outputs);
            for (; row + 2 <= rows; row += 2)
                multiply_rows(&p, AVL_SINGLE, row, 2, outputs);
            for (; row < rows; row++)
                multiply_rows(&p, AVL_SINGLE, row, 1, outputs);
        }
    }
}

HELPER void multiply(const avl_stored *w, avl_element element, const float *x, int64_t rows,
                     int64_t first, int64_t end, float *y)
{
    if (rows > STREAMED) {
        multiply_many(w, element, x, rows, first, end, y);
        return;
    }
    for (; rows >= FEW; rows -= FEW, x += FEW * w->inputs, y += FEW * w->outputs)
        multiply_few(w, element, x, FEW, first, end, y);
    if (rows == 3)
        multiply_few(w, element, x, 3, first, end, y);
    if (rows == 2)
        multiply_few(w, element, x, 2, first, end, y);
    if (rows == 1)
        multiply_few(w, element, x, 1, first, end, y);
}

void AVL_LEVEL(const avl_stored *weight, const float *x, int64_t rows, int64_t first, int64_t end,
               float *y)
{
    if (weight->element == AVL_HALF)
        multiply(weight, AVL_HALF, x, rows, first, end, y);
    else if (weight->element == AVL_BYTE)
        multiply(weight, AVL_BYTE, x, rows, first, end, y);
    else if (weight->element == AVL_BFLOAT)
        multiply(weight, AVL_BFLOAT, x, rows, first, end, y);
    else
        multiply(weight, AVL_SINGLE, x, rows, first, end, y);
}
