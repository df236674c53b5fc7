// A weight that lies [inputs, outputs] is read in its own order: its rows are added up, each times
// an input, some of them at a time, so that sums are read and written less often. They stay in a
// core's cache, and a weight is widened once for all rows of x.
#include "stacked.h"

#include "exponent.h"
#include "widen.h"

#include <string.h>

#define UNROLL _Pragma("GCC unroll 8")

enum { ADDED = 4 }; // rows of a weight at a time

// The first `count` of a register's numbers, the others 0.
HELPER lanes some(const float *from, int64_t count)
{
    lanes found = {0};
    memcpy(&found, from, (size_t)count * sizeof(float));
    return found;
}

HELPER lanes load(const float *from, int64_t count)
{
    return count == LANES ? *(const lanes *)from : some(from, count);
}

HELPER void store(float *to, lanes numbers, int64_t count)
{
    if (count == LANES)
        *(lanes *)to = numbers;
    else
        memcpy(to, &numbers, (size_t)count * sizeof(float));
}

// Behind the last row of a weight there may be no memory.
HELPER lanes widen_some(const char *row, int64_t at, int64_t count, avl_element element)
{
    if (count == LANES)
        return widen(row, at, element);
    char room[LANES * sizeof(float)] = {0};
    memcpy(room, row + at * avl_size_of(element), (size_t)(count * avl_size_of(element)));
    return widen(room, 0, element);
}

// Adds `count` of a weight's rows, from the one at `input` on, to columns of y.
HELPER void add_rows(const avl_stored *w, avl_element element, const float *x, int64_t rows,
                     int64_t input, int count, int64_t first, int64_t end, float *y)
{
    const int64_t stride = w->outputs * avl_size_of(element);
    const char *from = (const char *)w->data + input * stride;
    for (int64_t c = first; c < end; c += LANES) {
        const int64_t columns = least(LANES, end - c);
        lanes weights[ADDED];
        UNROLL for (int i = 0; i < count; i++)
            weights[i] = widen_some(from + i * stride, c, columns, element);
        for (int64_t r = 0; r < rows; r++) {
            float *to = y + r * w->outputs + c;
            lanes sums = load(to, columns);
            UNROLL for (int i = 0; i < count; i++)
                sums += weights[i] * x[r * w->inputs + input + i];
            store(to, sums, columns);
        }
    }
}

HELPER void multiply_turned(const avl_stored *w, avl_element element, const float *x, int64_t rows,
                            int64_t first, int64_t end, float *y)
{
    for (int64_t r = 0; r < rows; r++)
        memset(y + r * w->outputs + first, 0, (size_t)(end - first) * sizeof(float));
    int64_t input = 0;
    for (; input + ADDED <= w->inputs; input += ADDED)
        add_rows(w, element, x, rows, input, ADDED, first, end, y);
    for (; input < w->inputs; input++)
        add_rows(w, element, x, rows, input, 1, first, end, y);
}

HELPER void multiply_straight(const avl_stored *w, avl_element element, const float *x, int64_t rows,
                              int64_t first, int64_t end, float *y)
{
    for (int64_t output = first; output < end; output++)
        for (int64_t r = 0; r < rows; r++) {
            const char *row = row_of(w, element, output);
            lanes sums = {0};
            for (int64_t k = 0; k < w->inputs; k += LANES) {
                const int64_t count = least(LANES, w->inputs - k);
                sums += widen_some(row, k, count, element) * load(x + r * w->inputs + k, count);
            }
            y[r * w->outputs + output] = total(sums);
        }
}

#define FOR_ELEMENT(FUNCTION)                                                                      \
    if (weight->element == AVL_HALF)                                                               \
        FUNCTION(weight, AVL_HALF, x, rows, first, end, y);                                        \
    else if (weight->element == AVL_BFLOAT)                                                        \
        FUNCTION(weight, AVL_BFLOAT, x, rows, first, end, y);                                      \
    else                                                                                           \
        FUNCTION(weight, AVL_SINGLE, x, rows, first, end, y);

static void turned(const avl_stored *weight, const float *x, int64_t rows, int64_t first, int64_t end,
                   float *y)
{
    FOR_ELEMENT(multiply_turned)
}

static void straight(const avl_stored *weight, const float *x, int64_t rows, int64_t first,
                     int64_t end, float *y)
{
    FOR_ELEMENT(multiply_straight)
}

static void gate(const float *both, int64_t rows, int64_t size, int64_t first, int64_t end,
                 float *inner)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *gates = both + r * 2 * size, *ups = gates + size;
        float *restrict to = inner + r * size;
        for (int64_t c = first; c < end; c++)
            to[c] = avl_gated(gates[c] * ups[c], gates[c]);
    }
}

const avl_stacked_kernels AVL_LEVEL = {turned, straight, gate};
