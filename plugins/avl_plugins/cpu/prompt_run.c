// A prompt's attention in ONNX Runtime's threads.
#include "ort_op.h"
#include "prompt.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const avl_prompt_kernels *kernels;
    const avl_prompt *prompt;
} share;

static void attend(void *of, size_t i)
{
    const share *one = of;
    one->kernels->attend(one->prompt, (int64_t)i);
}

static void merge(void *of, size_t i)
{
    const share *one = of;
    one->kernels->merge(one->prompt, (int64_t)i);
}

static void sum_masses(void *of, size_t i)
{
    const share *one = of;
    one->kernels->sum_masses(one->prompt, (int64_t)i);
}

static OrtStatus *for_all(OrtKernelContext *context, void (*what)(void *, size_t), int64_t count,
                          share *one)
{
    size_t tasks = (size_t)count;
    return avl_api->KernelContext_ParallelFor(context, what, tasks, tasks, one);
}

static void clear_masses(const avl_step *step)
{
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

OrtStatus *avl_run_prompt(OrtKernelContext *context, const avl_prompt_kernels *kernels,
                          const avl_step *step)
{
    avl_prompt prompt;
    if (!avl_plan_prompt(step, &prompt))
        return avl_failed("expected memory for a prompt's attention, found none");
    share all = {kernels, &prompt};
    OrtStatus *status = for_all(context, attend, avl_prompt_tasks(&prompt), &all);
    if (!status && prompt.spans > 1)
        status = for_all(context, merge, prompt.parts, &all);
    clear_masses(step);
    if (!status && wanted(&prompt))
        status = for_all(context, sum_masses, prompt.parts * prompt.mass_spans, &all);
    free(prompt.memory);
    return status;
}
