// The gated delta rule of one head, in float32.
//
// One row reads the state once for its key and its query together: with d = beta (v - e^g S^T k) its
// output is e^g S^T q + (q . k) d. More rows are taken in chunks (arXiv 2412.06464). With c the sum
// of a chunk's decays up to a row, what the rows write, D, is the solution of
//
//     D + A D = beta v - (beta e^c k) S,    A[i, j] = beta_i e^(c_i - c_j) k_i . k_j for j < i,
//
// which is found row by row, as A has nothing on its diagonal or above: no inverse, and of the two
// products that an inverse would be multiplied with, none. Then outputs are
// (e^c q) S + P D, P[i, j] = e^(c_i - c_j) q_i . k_j for j <= i, and the state becomes
// e^c_last S + (e^(c_last - c) k)^T D. All else are products of matrices, a few rows and registers
// of columns at a time.
#include "delta.h"

#include "exponent.h"
#include "row_lanes.h"

#include <math.h>
#include <string.h>

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_delta_base
#endif

// Rows of a chunk, and of a tile, whose sums are TILE * WIDE registers.
enum { CHUNK = 32, TILE = 4 };

#define EPSILON 1e-6f // of schema/states.py
#define NOTHING -1e30f // whose power is zero
#define EACH_ROW(r) _Pragma("GCC unroll 4") for (int r = 0; r < TILE; r++)
#define EACH_WIDE(x, count) _Pragma("GCC unroll 4") for (int x = 0; x < (count); x++)

// One head of a sequence: its first rows, and how far on the next ones are.
typedef struct {
    const float *q, *k, *v, *decay, *beta, *state;
    float *out, *state_new;
    int64_t key_step, value_step, head_step, key_size, value_size;
} head;

// Room for a chunk. Rows are filled up with zeros to whole registers, and so are rows of the state.
typedef struct {
    int64_t key_size, value_size; // of filled rows
    float *q, *k, *weighted;      // [CHUNK, key_size], the last with one weight a row
    float *k_columns;             // [key_size, CHUNK]
    float *written, *found;       // [CHUNK, value_size]
    float *rule, *reads;          // [CHUNK, CHUNK], -A and P
    float *state;                 // [key_size, value_size]
    float since[CHUNK], beta[CHUNK]; // sums of decays, and none behind the rows
} chunk;

HELPER int64_t filled(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

static int64_t room(const avl_delta *of)
{
    const int64_t keys = filled(of->key_size), values = filled(of->value_size);
    return CHUNK * (4 * keys + 2 * values + 2 * CHUNK) + keys * values;
}

static chunk in_room(const head *of, float *at)
{
    chunk c = {.key_size = filled(of->key_size), .value_size = filled(of->value_size)};
    float **const keys[] = {&c.q, &c.k, &c.weighted, &c.k_columns};
    for (int i = 0; i < 4; i++, at += CHUNK * c.key_size)
        *keys[i] = at;
    c.written = at, at += CHUNK * c.value_size;
    c.found = at, at += CHUNK * c.value_size;
    c.rule = at, at += CHUNK * CHUNK;
    c.reads = at, at += CHUNK * CHUNK;
    c.state = at;
    return c;
}

HELPER float dot(const float *a, const float *b, int64_t size)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < size; i++)
        sum += a[i] * b[i];
    return sum;
}

// A query or key of norm 1, times a factor.
HELPER void unit(const float *restrict from, int64_t size, float factor, float *restrict to)
{
    const float by = factor / sqrtf(dot(from, from, size) + EPSILON);
    for (int64_t i = 0; i < size; i++)
        to[i] = by * from[i];
}

// Matrices that are read by rows and columns so far apart.
typedef struct {
    const float *at;
    int64_t row, column;
} matrix;

// to[r, x] = keep * to[r, x] + sum over i of a[r, i] b[i, x], for TILE rows and `wide` registers.
HELPER void tile(float *to, int64_t to_row, matrix a, const float *b, int64_t b_row, int64_t inner,
                 float keep, int wide)
{
    lanes sum[TILE][WIDE];
    EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] = (lanes){0};
    if (keep != 0.0f)
        EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] = keep * *(lanes *)(to + r * to_row + x * LANES);
    for (int64_t i = 0; i < inner; i++) {
        const float *from = a.at + i * a.column;
        lanes row[WIDE];
        EACH_WIDE(x, wide) row[x] = *(const lanes *)(b + i * b_row + x * LANES);
        EACH_ROW(r) EACH_WIDE(x, wide) sum[r][x] += from[r * a.row] * row[x];
    }
    EACH_ROW(r) EACH_WIDE(x, wide) *(lanes *)(to + r * to_row + x * LANES) = sum[r][x];
}

// The same for `columns` of b, whole registers.
HELPER void multiply(float *to, int64_t to_row, matrix a, const float *b, int64_t b_row,
                     int64_t inner, float keep, int64_t columns)
{
    int64_t x = 0;
    for (; x + WIDE * LANES <= columns; x += WIDE * LANES)
        tile(to + x, to_row, a, b + x, b_row, inner, keep, WIDE);
    for (; x + 2 * LANES <= columns; x += 2 * LANES)
        tile(to + x, to_row, a, b + x, b_row, inner, keep, 2);
    for (; x < columns; x += LANES)
        tile(to + x, to_row, a, b + x, b_row, inner, keep, 1);
}

// Rows [first, first + count) of the prompt into a chunk, of which `even` are computed.
HELPER void load(const head *of, int64_t first, int64_t count, int64_t even, chunk *c)
{
    const float scale = 1.0f / sqrtf((float)of->key_size);
    float since = 0.0f;
    for (int64_t r = 0; r < CHUNK; r++) {
        float *q = c->q + r * c->key_size, *k = c->k + r * c->key_size;
        const int64_t at = first + r, is_row = r < count;
        if (is_row) {
            unit(of->q + at * of->key_step, of->key_size, scale, q);
            unit(of->k + at * of->key_step, of->key_size, 1.0f, k);
            since += of->decay[at * of->head_step];
        } else if (r < even)
            memset(q, 0, (size_t)of->key_size * sizeof *q);
        if (!is_row)
            memset(k, 0, (size_t)of->key_size * sizeof *k);
        c->since[r] = since;
        c->beta[r] = is_row ? of->beta[at * of->head_step] : 0.0f;
        for (int64_t i = 0; i < of->key_size; i++)
            c->k_columns[i * CHUNK + r] = k[i];
    }
    for (int64_t r = 0; r < even; r++) {
        float *to = c->written + r * c->value_size;
        const float *v = of->v + (first + r) * of->value_step;
        for (int64_t i = 0; i < of->value_size; i++)
            to[i] = r < count ? c->beta[r] * v[i] : 0.0f;
    }
}

// -A and P: of each tile's rows, columns up to its last one.
HELPER void relate(chunk *c, int64_t even)
{
    for (int64_t r = 0; r < even; r += TILE) {
        const int64_t columns = filled(r + TILE), at = r * CHUNK;
        const matrix k = {c->k + r * c->key_size, c->key_size, 1};
        const matrix q = {c->q + r * c->key_size, c->key_size, 1};
        multiply(c->rule + at, CHUNK, k, c->k_columns, CHUNK, c->key_size, 0.0f, columns);
        multiply(c->reads + at, CHUNK, q, c->k_columns, CHUNK, c->key_size, 0.0f, columns);
    }
    for (int64_t r = 0; r < even; r++) {
        float *restrict rule = c->rule + r * CHUNK, *restrict reads = c->reads + r * CHUNK;
        for (int64_t j = 0; j < CHUNK; j++) {
            const float left = avl_exp(j <= r ? c->since[r] - c->since[j] : NOTHING);
            rule[j] = j < r ? -c->beta[r] * left * rule[j] : 0.0f;
            reads[j] = j <= r ? left * reads[j] : 0.0f;
        }
    }
}

// Rows of `from`, each times a weight.
HELPER matrix weigh(chunk *c, const float *from, int64_t even, const float *weights)
{
    for (int64_t r = 0; r < even; r++)
        for (int64_t i = 0; i < c->key_size; i++)
            c->weighted[r * c->key_size + i] = weights[r] * from[r * c->key_size + i];
    return (matrix){c->weighted, c->key_size, 1};
}

// What rows write, from what they would on an empty state with each other unread.
HELPER void solve(chunk *c, int64_t even)
{
    const int64_t values = c->value_size;
    for (int64_t r = 0; r < even; r += TILE) {
        float *rows = c->written + r * values;
        const matrix rule = {c->rule + r * CHUNK, CHUNK, 1};
        multiply(rows, values, rule, c->written, values, r, 1.0f, values);
        for (int64_t i = 1; i < TILE; i++)
            for (int64_t j = 0; j < i; j++) {
                const float of_row = rule.at[i * CHUNK + r + j];
                for (int64_t x = 0; x < values; x++)
                    rows[i * values + x] += of_row * rows[j * values + x];
            }
    }
}

// A product with the state or with what rows write, a tile of rows after the other.
HELPER void multiply_rows(float *to, matrix a, const float *b, int64_t rows, int64_t inner,
                          float keep, int64_t columns)
{
    for (int64_t r = 0; r < rows; r += TILE, a.at += TILE * a.row)
        multiply(to + r * columns, columns, a, b, columns, inner, keep, columns);
}

HELPER void run_chunk(const head *of, chunk *c, int64_t first, int64_t count)
{
    const int64_t even = (count + TILE - 1) / TILE * TILE, values = c->value_size;
    float weights[CHUNK];
    load(of, first, count, even, c);
    relate(c, even);
    const float total = c->since[CHUNK - 1];

    for (int r = 0; r < CHUNK; r++)
        weights[r] = -c->beta[r] * avl_exp(c->since[r]);
    multiply_rows(c->written, weigh(c, c->k, even, weights), c->state, even, c->key_size, 1.0f,
                  values);
    solve(c, even);

    for (int r = 0; r < CHUNK; r++)
        weights[r] = avl_exp(c->since[r]);
    multiply_rows(c->found, weigh(c, c->q, even, weights), c->state, even, c->key_size, 0.0f,
                  values);
    for (int64_t r = 0; r < even; r += TILE)
        multiply(c->found + r * values, values, (matrix){c->reads + r * CHUNK, CHUNK, 1},
                 c->written, values, r + TILE, 1.0f, values);

    for (int r = 0; r < CHUNK; r++)
        weights[r] = avl_exp(total - c->since[r]);
    const matrix to_end = weigh(c, c->k, even, weights);
    const float kept = avl_exp(total);
    if (kept == 0.0f)
        memset(c->state, 0, (size_t)(c->key_size * values) * sizeof *c->state);
    multiply_rows(c->state, (matrix){to_end.at, 1, c->key_size}, c->written, c->key_size, even,
                  kept, values);

    for (int64_t r = 0; r < count; r++)
        memcpy(of->out + (first + r) * of->value_step, c->found + r * values,
               (size_t)of->value_size * sizeof *of->out);
}

static void run_rows(const head *of, int64_t rows, float *memory, int64_t size)
{
    memset(memory, 0, (size_t)size * sizeof *memory); // above all, what rows are filled up with
    chunk c = in_room(of, memory);
    const size_t row = (size_t)of->value_size * sizeof(float);
    for (int64_t i = 0; i < of->key_size; i++)
        memcpy(c.state + i * c.value_size, of->state + i * of->value_size, row);
    for (int64_t first = 0; first < rows; first += CHUNK)
        run_chunk(of, &c, first, least(CHUNK, rows - first));
    for (int64_t i = 0; i < of->key_size; i++)
        memcpy(of->state_new + i * of->value_size, c.state + i * c.value_size, row);
}

// One row and WIDE registers of columns, from `x` on.
HELPER void step_columns(const head *of, const float *q, const float *k, float decay, float beta,
                         float of_both, int64_t x)
{
    const float *from = of->state + x;
    float *to = of->state_new + x;
    lanes of_key[WIDE], of_query[WIDE], change[WIDE];
    EACH_WIDE(w, WIDE) of_key[w] = of_query[w] = (lanes){0};
    for (int64_t i = 0; i < of->key_size; i++)
        EACH_WIDE(w, WIDE)
        {
            const lanes held = *(const lanes *)(from + i * of->value_size + w * LANES);
            of_key[w] += k[i] * held;
            of_query[w] += q[i] * held;
        }
    EACH_WIDE(w, WIDE)
    {
        const int64_t at = x + w * LANES;
        change[w] = beta * (*(const lanes *)(of->v + at) - decay * of_key[w]);
        *(lanes *)(of->out + at) = decay * of_query[w] + of_both * change[w];
    }
    for (int64_t i = 0; i < of->key_size; i++)
        EACH_WIDE(w, WIDE)
        {
            const int64_t at = i * of->value_size + w * LANES;
            *(lanes *)(to + at) = decay * *(const lanes *)(from + at) + k[i] * change[w];
        }
}

static void run_step(const head *of, float *memory)
{
    float *q = memory, *k = memory + of->key_size;
    unit(of->q, of->key_size, 1.0f / sqrtf((float)of->key_size), q);
    unit(of->k, of->key_size, 1.0f, k);
    const float decay = avl_exp(*of->decay), beta = *of->beta, of_both = dot(q, k, of->key_size);
    const int64_t d = of->value_size;
    int64_t x = 0;
    for (; x + WIDE * LANES <= d; x += WIDE * LANES)
        step_columns(of, q, k, decay, beta, of_both, x);
    for (; x < d; x++) {
        float of_key = 0.0f, of_query = 0.0f;
        for (int64_t i = 0; i < of->key_size; i++) {
            of_key += k[i] * of->state[i * d + x];
            of_query += q[i] * of->state[i * d + x];
        }
        const float change = beta * (of->v[x] - decay * of_key);
        of->out[x] = decay * of_query + of_both * change;
        for (int64_t i = 0; i < of->key_size; i++)
            of->state_new[i * d + x] = decay * of->state[i * d + x] + k[i] * change;
    }
}

static void run(const avl_delta *of, int64_t task, float *memory)
{
    const int64_t b = task / of->heads, h = task % of->heads;
    const int64_t key_head = h / (of->heads / of->key_heads);
    const int64_t key = (b * of->rows * of->key_heads + key_head) * of->key_size;
    const int64_t row = b * of->rows * of->heads + h, state = task * of->key_size * of->value_size;
    const head one = {.q = of->q + key, .k = of->k + key, .v = of->v + row * of->value_size,
                      .decay = of->decay + row, .beta = of->beta + row, .state = of->state + state,
                      .out = of->out + row * of->value_size, .state_new = of->state_new + state,
                      .key_step = of->key_heads * of->key_size,
                      .value_step = of->heads * of->value_size, .head_step = of->heads,
                      .key_size = of->key_size, .value_size = of->value_size};
    if (of->rows == 1)
        run_step(&one, memory);
    else
        run_rows(&one, of->rows, memory, room(of));
}

const avl_delta_kernels AVL_LEVEL = {room, run};
