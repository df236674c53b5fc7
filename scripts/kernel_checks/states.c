// Layers with a state beside float64: the gated delta rule row by row, and the convolution.
#include "check.h"

#include "levels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static double *doubles(int64_t count)
{
    double *made = calloc((size_t)count, sizeof *made);
    if (!made)
        abort();
    return made;
}

// A row of length 1.
static void unit(const float *row, int64_t size, double *to)
{
    double squares = 1e-6;
    for (int64_t i = 0; i < size; i++)
        squares += (double)row[i] * row[i];
    for (int64_t i = 0; i < size; i++)
        to[i] = row[i] / sqrt(squares);
}

// The rows of one head of the only sequence, and its state [Dk, Dv], which changes.
static void run_head(const avl_delta *of, int64_t h, double *state)
{
    const int64_t dk = of->key_size, dv = of->value_size;
    const int64_t key_head = h / (of->heads / of->key_heads);
    double *q = doubles(2 * dk + dv), *k = q + dk, *change = k + dk;
    for (int64_t s = 0; s < of->rows; s++) {
        const int64_t key = (s * of->key_heads + key_head) * dk, row = s * of->heads + h;
        unit(of->q + key, dk, q);
        unit(of->k + key, dk, k);
        const double kept = exp(of->decay[row]);
        for (int64_t x = 0; x < dv; x++) {
            change[x] = of->v[row * dv + x];
            for (int64_t i = 0; i < dk; i++) {
                state[i * dv + x] *= kept;
                change[x] -= state[i * dv + x] * k[i];
            }
            double found = 0;
            for (int64_t i = 0; i < dk; i++) {
                state[i * dv + x] += k[i] * of->beta[row] * change[x];
                found += state[i * dv + x] * q[i] / sqrt((double)dk);
            }
            expect("rule", of->out[row * dv + x], found, 64 * FLT_EPSILON);
        }
    }
    free(q);
}

static float *between_0_and_1(int64_t count, float sign)
{
    float *made = numbers(count);
    for (int64_t i = 0; i < count; i++)
        made[i] = sign * fabsf(made[i]);
    return made;
}

static void check_rule(int64_t rows, int64_t dk, int64_t dv)
{
    enum { KEY_HEADS = 2, HEADS = 4 };
    const int64_t keys = rows * KEY_HEADS * dk, values = rows * HEADS * dv, size = dk * dv;
    float *held = numbers(HEADS * size), *made = results(HEADS * size), *out = results(values);
    const avl_delta of = {
        .batch = 1, .rows = rows, .key_heads = KEY_HEADS, .heads = HEADS, .key_size = dk,
        .value_size = dv, .q = numbers(keys), .k = numbers(keys), .v = numbers(values),
        .decay = between_0_and_1(rows * HEADS, -1.0f), .beta = between_0_and_1(rows * HEADS, 1.0f),
        .state = held, .out = out, .state_new = made};
    const avl_delta_kernels *kernels = avl_best_delta();
    float *room = results(kernels->room(&of));
    double *state = doubles(size);
    for (int64_t h = HEADS; h--;) {
        kernels->run(&of, h, room);
        for (int64_t i = 0; i < size; i++)
            state[i] = held[h * size + i];
        run_head(&of, h, state);
        for (int64_t i = 0; i < size; i++)
            expect("state", made[h * size + i], state[i], 64 * FLT_EPSILON);
    }
    free(state);
    forget();
}

static void check_convolution(int64_t rows, int64_t channels, int64_t kernel, int has_silu)
{
    const int64_t before = kernel - 1;
    const float *x = numbers(rows * channels), *held = numbers(before * channels);
    const float *weight = numbers(channels * kernel);
    float *y = results(rows * channels), *made = results(before * channels);
    const avl_convolution of = {1, rows, channels, kernel, has_silu, x, held, weight, y, made};
    for (int64_t task = (channels + AVL_CHANNELS - 1) / AVL_CHANNELS; task--;)
        avl_best_convolve()(&of, task);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t at = 0; at < rows + before; at++) {
            double sum = 0;
            for (int64_t j = 0; at < rows && j < kernel; j++) {
                const int64_t row = at + j;
                sum += weight[c * kernel + j] * (double)(row < before ? held[row * channels + c]
                                                                      : x[(row - before) * channels + c]);
            }
            if (at < rows)
                expect("convolution", y[at * channels + c], has_silu ? sum / (1 + exp(-sum)) : sum,
                       16 * FLT_EPSILON);
            if (at >= rows)
                expect("last rows", made[(at - rows) * channels + c],
                       at < before ? held[at * channels + c] : x[(at - before) * channels + c], 0);
        }
    forget();
}

void check_states(void)
{
    static const int64_t sizes[][2] = {{5, 7}, {24, 80}, {64, 64}};
    static const int64_t rows[] = {1, 2, 32, 70};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof rows / sizeof *rows; j++)
            check_rule(rows[j], sizes[i][0], sizes[i][1]);
    for (int64_t kernel = 1; kernel < 7; kernel++)
        for (int has_silu = 0; has_silu < 2; has_silu++) {
            check_convolution(1, 300, kernel, has_silu);
            check_convolution(9, 67, kernel, has_silu);
        }
}
