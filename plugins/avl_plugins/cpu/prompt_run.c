// A prompt's attention in ONNX Runtime's threads.
#include "ort_op.h"
#include "prompt.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const avl_prompt *prompt;
    avl_prompt_task *task;
    int64_t count;
    atomic_llong next;
} work;

// Tasks of `count`, as long as there are any.
static void take_tasks(void *of, size_t worker)
{
    work *shared = of;
    float *room = shared->prompt->rooms + (int64_t)worker * shared->prompt->room;
    for (int64_t i; (i = atomic_fetch_add(&shared->next, 1)) < shared->count;)
        shared->task(shared->prompt, i, room);
}

static OrtStatus *for_all(OrtKernelContext *context, const avl_prompt *prompt,
                          avl_prompt_task *task, int64_t count)
{
    work shared = {.prompt = prompt, .task = task, .count = count};
    size_t workers = (size_t)(count < prompt->workers ? count : prompt->workers);
    return avl_api->KernelContext_ParallelFor(context, take_tasks, workers, workers, &shared);
}

static void clear_masses(const avl_step *step)
{
    if (!step->weightings)
        return;
    size_t each = (size_t)(step->batch * step->kv_heads * step->weightings) * sizeof(float);
    memset(step->mass_active, 0, each * (size_t)step->active);
    memset(step->mass_parked, 0, each * (size_t)step->parked);
    memset(step->mass_new, 0, each * (size_t)step->rows);
}

static int64_t wanted(const avl_prompt *prompt)
{
    int64_t all = 0;
    for (int64_t b = 0; b < prompt->step->batch; b++)
        all += prompt->wanted[b];
    return all;
}

// Of rows that have a weight.
static OrtStatus *sum_masses(OrtKernelContext *context, const avl_prompt_kernels *kernels,
                             int has_sums, const avl_prompt *prompt)
{
    const int64_t tasks = prompt->parts * prompt->mass_spans;
    OrtStatus *status = NULL;
    clear_masses(prompt->step);
    if (!wanted(prompt))
        return NULL;
    if (!has_sums)
        status = for_all(context, prompt, kernels->find_sums, tasks);
    if (!status && !has_sums)
        status = for_all(context, prompt, kernels->merge_sums, prompt->parts);
    return status ? status : for_all(context, prompt, kernels->sum_masses, tasks);
}

OrtStatus *avl_run_prompt(OrtKernelContext *context, const avl_prompt_kernels *kernels,
                          const avl_prompt_tiles *tiles, const avl_step *step)
{
    const avl_prompt_tiles *taken = step->rows < AVL_TILED_ROWS ? NULL : tiles;
    avl_prompt prompt;
    if (!avl_plan_prompt(step, taken, &prompt))
        return avl_failed("expected memory for a prompt's attention, found none");
    avl_prompt_task *attend = taken ? taken->attend : kernels->attend;
    OrtStatus *status = for_all(context, &prompt, attend, avl_prompt_tasks(&prompt));
    if (!status && prompt.spans > 1)
        status = for_all(context, &prompt, kernels->merge, prompt.parts);
    if (!status)
        status = sum_masses(context, kernels, !taken, &prompt);
    free(prompt.memory);
    return status;
}
