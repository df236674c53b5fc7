// Linear and LogitsLinear beside products in float64.
#include "check.h"

#include "levels.h"

#include <float.h>
#include <math.h>
#include <string.h>

static const int64_t SIZES[][2] = {{16, 1}, {48, 21}, {208, 67}, {1040, 13}, {3088, 5}};
static const int64_t ROWS[] = {1, 2, 3, 4, 7, 23};
enum { CASES = sizeof SIZES / sizeof *SIZES, COUNTS = sizeof ROWS / sizeof *ROWS };

// Numbers of 16 bits as IEEE 754 and bfloat16 define them.
static double from_half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, digits = bits & 1023;
    double size = exponent ? ldexp(1024 + digits, exponent - 25) : ldexp(digits, -24);
    return bits >> 15 ? -size : size;
}

static double from_bfloat(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float number;
    memcpy(&number, &wide, sizeof number);
    return number;
}

static double element_at(const avl_stored *w, int64_t index)
{
    switch (w->element) {
    case AVL_HALF: return from_half(((const uint16_t *)w->data)[index]);
    case AVL_BFLOAT: return from_bfloat(((const uint16_t *)w->data)[index]);
    case AVL_BYTE: return ((const int8_t *)w->data)[index];
    default: return ((const float *)w->data)[index];
    }
}

// Weights of any bits that are numbers, of bfloat16 those of usual size.
static avl_stored any_weight(avl_element element, int64_t inputs, int64_t outputs)
{
    avl_stored w = {inputs, outputs, element, numbers(inputs * outputs)};
    for (int64_t i = 0; element == AVL_HALF && i < inputs * outputs; i++)
        ((uint16_t *)w.data)[i] = (uint16_t)(any_whole(0, 1) << 15 | any_whole(0, 0x7bff));
    for (int64_t i = 0; element == AVL_BFLOAT && i < inputs * outputs; i++)
        ((uint16_t *)w.data)[i] = (uint16_t)(any_whole(0, 1) << 15 | any_whole(0x3c00, 0x43ff));
    for (int64_t i = 0; element == AVL_BYTE && i < inputs * outputs; i++)
        ((int8_t *)w.data)[i] = (int8_t)any_whole(-128, 127);
    return w;
}

// A product and what float32 sums of so many terms may be off.
static double product(const avl_stored *w, const float *x, int64_t output, double *allowed)
{
    double sum = 0, size = 0;
    for (int64_t i = 0; i < w->inputs; i++) {
        double term = x[i] * element_at(w, output * w->inputs + i);
        sum += term;
        size += fabs(term);
    }
    *allowed = FLT_EPSILON * (2 + (double)w->inputs / 8) * size;
    return sum;
}

static void check_products(avl_element element, int64_t inputs, int64_t outputs, int64_t rows)
{
    const avl_screening *with = avl_best_linears();
    avl_stored w = any_weight(element, inputs, outputs);
    const float *x = numbers(rows * inputs);
    float *y = results(rows * outputs);
    int64_t first = any_whole(0, outputs - 1), end = any_whole(first, outputs);
    with->multiply(&w, x, rows, first, end, y);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < outputs; i++) {
            double allowed, wanted = product(&w, x + r * inputs, i, &allowed);
            if (i >= first && i < end)
                expect("linear", y[r * outputs + i], wanted, allowed);
            else
                expect("what was not asked for", isnan(y[r * outputs + i]), 1, 0);
        }
}

// The largest of each row is there, and what is there is the product.
static void check_largest(avl_element element, int64_t inputs, int64_t outputs, int64_t rows)
{
    const avl_screening *with = avl_best_linears();
    avl_stored w = any_weight(element, inputs, outputs);
    avl_screen screen = {{inputs, outputs, AVL_BYTE, numbers(inputs * outputs)}, results(outputs),
                         results(outputs)};
    float *y = results(rows * outputs), *all = results(rows * outputs), lengths[32], floors[32];
    avl_screened of = {numbers(rows * inputs), rows, y, lengths};
    for (int64_t r = 0; r < rows; r++) {
        double squares = 0;
        for (int64_t i = 0; i < inputs; i++)
            squares += (double)of.x[r * inputs + i] * of.x[r * inputs + i];
        lengths[r] = (float)(sqrt(squares) * (1 + 1e-6));
    }
    with->make(&w, &screen, 0, outputs);
    with->estimate(&screen, &of, 0, outputs, floors);
    with->settle(&w, &screen, &of, 0, outputs, floors);
    with->multiply(&w, of.x, rows, 0, outputs, all);
    for (int64_t r = 0; r < rows; r++) {
        float largest = -INFINITY;
        for (int64_t i = r * outputs; i < (r + 1) * outputs; i++)
            largest = all[i] > largest ? all[i] : largest;
        for (int64_t i = r * outputs; i < (r + 1) * outputs; i++)
            if (all[i] == largest || y[i] != -INFINITY)
                expect("logits", y[i], all[i], 0);
    }
}

void check_linears(void)
{
    for (int c = 0; avl_best_linears() && c < CASES; c++)
        for (int r = 0; r < COUNTS; r++)
            for (avl_element element = AVL_HALF; element <= AVL_BYTE; element++) {
                check_products(element, SIZES[c][0], SIZES[c][1], ROWS[r]);
                if (element != AVL_BYTE && ROWS[r] <= 16)
                    check_largest(element, SIZES[c][0], 70 + SIZES[c][1], ROWS[r]);
                forget();
            }
}
