#include "step.h"

#include "ort_op.h"
#include "refresh.h"

#include <stdlib.h>

// Some sequences of a step, from `row` on.
typedef struct {
    OrtKernelContext *context;
    const avl_step_kernels *kernels;
    const avl_step *step;
    int64_t row, rows;
    int64_t first; // chunk or part of theirs
    const avl_refresh *refresh;
    avl_swaps swaps;
} share;

typedef void (*task)(void *share, size_t index);

static void score_keys(void *of, size_t i)
{
    const share *one = of;
    one->kernels->score_keys(one->step, one->first + (int64_t)i);
}

static void sum_values(void *of, size_t i)
{
    const share *one = of;
    one->kernels->sum_values(one->step, one->first + (int64_t)i);
}

static void read_rows(void *of, size_t i)
{
    score_keys(of, i);
    sum_values(of, i);
}

static void sum_masses(void *of, size_t i)
{
    const share *one = of;
    one->kernels->sum_masses(one->step, one->first + (int64_t)i);
}

static void merge(void *of, size_t i)
{
    const share *one = of;
    one->kernels->merge(one->step, one->first + (int64_t)i);
}

static void merge_with_masses(void *of, size_t i)
{
    sum_masses(of, i);
    merge(of, i);
}

// Rows of a head, or their scales. They are inputs of the op, but memory that the host has offered
// (refresh.h).
static void swap_rows(const share *one, int64_t head, const void *active, const void *parked,
                      int64_t bytes)
{
    const avl_step *step = one->step;
    int64_t part = one->row * step->kv_heads + head;
    one->kernels->swap_rows((char *)active + part * step->active * bytes,
                            (char *)parked + part * step->parked * bytes, bytes,
                            one->swaps.leaving, one->swaps.entering, one->swaps.count);
}

static void swap_keys(const share *one, int64_t head)
{
    const avl_step *step = one->step;
    const avl_codes *of = step->codes;
    const int64_t d = step->head_dim, size = sizeof(float);
    if (!of) {
        swap_rows(one, head, step->k_active, step->k_parked, d * size);
        return;
    }
    swap_rows(one, head, of->k_active, of->k_parked, d * of->bits / 8);
    if (of->k_active_scales)
        swap_rows(one, head, of->k_active_scales, of->k_parked_scales, size);
}

static void swap_values(const share *one, int64_t head)
{
    const avl_step *step = one->step;
    const avl_codes *of = step->codes;
    const int64_t d = step->head_dim, size = sizeof(float);
    if (!of) {
        swap_rows(one, head, step->v_active, step->v_parked, d * size);
        return;
    }
    swap_rows(one, head, of->v_active, of->v_parked, d * of->bits / 8);
    if (of->v_active_scales)
        swap_rows(one, head, of->v_active_scales, of->v_parked_scales, size);
}

// The keys of a head while the processor has them, or a chunk's values.
static void swap_keys_or_sum_values(void *of, size_t i)
{
    const share *one = of;
    const size_t heads = (size_t)one->step->kv_heads;
    if (i < heads)
        swap_keys(one, (int64_t)i);
    else
        sum_values(of, i - heads);
}

static void merge_and_swap_values(void *of, size_t i)
{
    const share *one = of;
    merge(of, i);
    swap_values(one, (int64_t)i);
    if (i)
        avl_label_head(one->refresh, one->step, one->row, (int64_t)i, &one->swaps);
}

// After so many tasks `before`.
static OrtStatus *for_chunks(share *one, task what, int64_t before)
{
    int64_t each = one->kernels->chunks(one->step) / one->step->batch;
    size_t count = (size_t)(before + each * one->rows);
    one->first = each * one->row;
    return avl_api->KernelContext_ParallelFor(one->context, what, count, count, one);
}

static OrtStatus *for_parts(share *one, task what)
{
    size_t count = (size_t)(one->step->kv_heads * one->rows);
    one->first = one->step->kv_heads * one->row;
    return avl_api->KernelContext_ParallelFor(one->context, what, count, 0, one);
}

// One sequence: its keys change places while the processor's cache has them, and so do its values.
static OrtStatus *refresh_row(share *one)
{
    OrtStatus *status;
    if ((status = for_chunks(one, score_keys, 0)) || (status = for_parts(one, sum_masses)))
        return status;
    avl_rank(one->refresh, one->step, one->row, &one->swaps);
    if ((status = for_chunks(one, swap_keys_or_sum_values, one->step->kv_heads)) ||
        (status = for_parts(one, merge_and_swap_values)))
        return status;
    avl_label(one->refresh, one->step, one->row, &one->swaps);
    return NULL;
}

static OrtStatus *refresh_rows(share *one)
{
    int64_t slots = one->step->parked + 1, keys = one->step->active + one->step->parked;
    int64_t *memory = malloc((size_t)(2 * slots + keys) * sizeof *memory);
    if (!memory)
        return avl_failed("expected memory for ranks, found none");
    one->swaps = (avl_swaps){memory, memory + slots, 0, (uint32_t *)(memory + 2 * slots)};
    OrtStatus *status = NULL;
    for (one->row = 0; !status && one->row < one->step->batch; one->row++)
        status = refresh_row(one);
    free(memory);
    return status;
}

OrtStatus *avl_run_step(OrtKernelContext *context, const avl_step_kernels *kernels,
                        const avl_step *step)
{
    const avl_refresh *refresh = avl_offered(step);
    share all = {.context = context, .kernels = kernels, .step = step,
                 .rows = refresh ? 1 : step->batch, .refresh = refresh};
    if (refresh)
        return refresh_rows(&all);
    OrtStatus *status = for_chunks(&all, read_rows, 0);
    if (!status && step->weightings)
        return for_parts(&all, merge_with_masses);
    // Without masses it is so little that waking other threads would take longer.
    for (size_t i = 0; !status && i < (size_t)(step->batch * step->kv_heads); i++)
        merge(&all, i);
    return status;
}
