// LogitsLinear as a custom op of ONNX Runtime's CPU provider.
#include "levels.h"
#include "ort_linear.h"
#include "ort_op.h"
#include "unmap.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

// Which logits are read; numbered as in avl_plugins.cpu.logits.
typedef enum { ALL, LARGEST, NONE } wanted;

static _Thread_local wanted asked;

// Says so for the runs of this thread from now on.
__attribute__((visibility("default"))) void avl_want_logits(int which) { asked = (wanted)which; }

enum { TASKS = 16, MOST_ROWS = 16 }; // of more rows, sums take longer than reading weights

// A screen is made by the first run that wants it; who comes meanwhile does without.
enum { ABSENT, BEING_MADE, THERE };

typedef struct {
    const avl_screening *with;
    avl_stored weight;
    avl_screen screen;
    atomic_int state;
} head;

typedef struct {
    head *of;
    avl_screened rows;
    float lengths[MOST_ROWS], floors[TASKS][MOST_ROWS];
} product;

static int64_t begin_of(const head *h, size_t index)
{
    return h->weight.outputs * (int64_t)index / TASKS;
}

static void multiply_share(void *of, size_t index)
{
    const product *p = of;
    p->of->with->multiply(&p->of->weight, p->rows.x, p->rows.rows, begin_of(p->of, index),
                          begin_of(p->of, index + 1), p->rows.y);
}

// The pages of weights that were screened are hardly read again.
static void make_share(void *of, size_t index)
{
    const head *h = ((product *)of)->of;
    const int64_t first = begin_of(h, index), end = begin_of(h, index + 1);
    const int64_t bytes = h->weight.inputs * avl_size_of(h->weight.element);
    h->with->make(&h->weight, &h->screen, first, end);
    avl_unmap((const char *)h->weight.data + first * bytes, (size_t)((end - first) * bytes));
}

static void estimate_share(void *of, size_t index)
{
    product *p = of;
    p->of->with->estimate(&p->of->screen, &p->rows, begin_of(p->of, index),
                          begin_of(p->of, index + 1), p->floors[index]);
}

static void settle_share(void *of, size_t index)
{
    const product *p = of;
    p->of->with->settle(&p->of->weight, &p->of->screen, &p->rows, begin_of(p->of, index),
                        begin_of(p->of, index + 1), p->floors[0]);
}

static OrtStatus *share(OrtKernelContext *context, void (*task)(void *, size_t), product *p)
{
    return avl_api->KernelContext_ParallelFor(context, task, TASKS, 0, p);
}

// Whether x has lengths for which a screen is right.
static int measure(product *p)
{
    for (int64_t r = 0; r < p->rows.rows; r++) {
        const float *x = p->rows.x + r * p->of->weight.inputs;
        double squares = 0;
        for (int64_t i = 0; i < p->of->weight.inputs; i++)
            squares += (double)x[i] * x[i];
        const double length = sqrt(squares) * (1 + 1e-6);
        if (!(length >= AVL_LEAST_LENGTH && length <= AVL_MOST_LENGTH))
            return 0;
        p->lengths[r] = (float)length;
    }
    return 1;
}

static int allocate(head *h)
{
    avl_screen *s = &h->screen;
    const size_t outputs = (size_t)h->weight.outputs;
    s->codes = (avl_stored){h->weight.inputs, h->weight.outputs, AVL_BYTE,
                            malloc(outputs * (size_t)h->weight.inputs)};
    s->scales = malloc(outputs * sizeof *s->scales);
    s->distances = malloc(outputs * sizeof *s->distances);
    return s->codes.data && s->scales && s->distances;
}

static void release(head *h)
{
    free((void *)h->screen.codes.data);
    free(h->screen.scales);
    free(h->screen.distances);
    h->screen = (avl_screen){0};
}

// Sees to a screen, if it can be had.
static OrtStatus *prepare(OrtKernelContext *context, product *p)
{
    int before = ABSENT;
    if (!atomic_compare_exchange_strong(&p->of->state, &before, BEING_MADE))
        return NULL;
    OrtStatus *status = NULL;
    int made = allocate(p->of) && !(status = share(context, make_share, p));
    if (!made)
        release(p->of);
    atomic_store(&p->of->state, made ? THERE : ABSENT);
    return status;
}

static OrtStatus *screened(OrtKernelContext *context, product *p)
{
    OrtStatus *status = share(context, estimate_share, p);
    if (status)
        return status;
    for (size_t task = 1; task < TASKS; task++)
        for (int64_t r = 0; r < p->rows.rows; r++)
            if (p->floors[task][r] > p->floors[0][r])
                p->floors[0][r] = p->floors[task][r];
    return share(context, settle_share, p);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    head *h = kernel;
    avl_tensor x;
    product p = {.of = h};
    OrtStatus *status = avl_input(context, 0, &x);
    if (status)
        return status;
    if (x.rank != 2 || x.dims[1] != h->weight.inputs)
        return avl_failed("expected x [rows, inputs] with the weight's inputs");
    const int64_t dims[2] = {x.dims[0], h->weight.outputs};
    if ((status = avl_output(context, 0, dims, 2, &p.rows.y)) || !dims[0])
        return status;
    p.rows.x = x.data;
    p.rows.rows = dims[0];
    p.rows.lengths = p.lengths;
    if (asked == NONE) {
        for (int64_t i = 0; i < dims[0] * dims[1]; i++)
            p.rows.y[i] = NAN;
        return NULL;
    }
    if (asked == LARGEST && dims[0] <= MOST_ROWS && measure(&p)) {
        if ((status = prepare(context, &p)))
            return status;
        if (atomic_load(&h->state) == THERE)
            return screened(context, &p);
    }
    return share(context, multiply_share, &p);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused_api, const OrtKernelInfo *info,
                         void **kernel)
{
    (void)op, (void)unused_api;
    head *h = calloc(1, sizeof *h);
    if (!h)
        return avl_failed("expected memory, found none");
    h->with = avl_best_linears();
    OrtStatus *status = avl_read_stored(info, 1, &h->weight);
    if (status)
        free(h);
    else
        *kernel = h;
    return status;
}

static void destroy(void *kernel)
{
    release(kernel);
    free(kernel);
}

static const int TYPES[] = {ORT_FLOAT, ORT_ANY};

const avl_op avl_logits_linear = {AVL_OP(create, compute, destroy), "LogitsLinear", 2, 1, TYPES,
                                  NULL};
