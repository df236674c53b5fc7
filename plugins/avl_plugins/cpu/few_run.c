// A few rows' attention in ONNX Runtime's threads.
#include "few.h"

#include "ort_op.h"

#include <stdatomic.h>
#include <stdlib.h>

// From so many parts on each is a task, whose scores stay in a core's second cache; else its chunks.
enum { WHOLE_PARTS = 8, WORKERS = 64, LINE = 64 };

typedef struct {
    const avl_few_kernels *kernels;
    const avl_step *step;
    int64_t parts, chunks, room;
    float *rooms; // of each worker, or of each part
    atomic_llong next;
} work;

static void finish_part(const work *shared, int64_t part, float *room)
{
    if (shared->step->weightings)
        shared->kernels->sum_masses(shared->step, part, room);
    shared->kernels->merge(shared->step, part, room);
}

static void take_parts(void *of, size_t worker)
{
    work *shared = of;
    const avl_few_kernels *kernels = shared->kernels;
    float *room = shared->rooms + (int64_t)worker * shared->room;
    for (int64_t part; (part = atomic_fetch_add(&shared->next, 1)) < shared->parts;) {
        kernels->prepare(shared->step, part, room);
        for (int64_t i = part * shared->chunks; i < (part + 1) * shared->chunks; i++) {
            kernels->score_keys(shared->step, i, room);
            kernels->sum_values(shared->step, i, room);
        }
        finish_part(shared, part, room);
    }
}

static float *room_of(const work *shared, int64_t part)
{
    return shared->rooms + part * shared->room;
}

static void prepare_part(void *of, size_t part)
{
    const work *shared = of;
    shared->kernels->prepare(shared->step, (int64_t)part, room_of(shared, (int64_t)part));
}

static void read_chunk(void *of, size_t index)
{
    const work *shared = of;
    const int64_t chunk = (int64_t)index;
    float *room = room_of(shared, chunk / shared->chunks);
    shared->kernels->score_keys(shared->step, chunk, room);
    shared->kernels->sum_values(shared->step, chunk, room);
}

static void end_part(void *of, size_t part)
{
    finish_part(of, (int64_t)part, room_of(of, (int64_t)part));
}

static OrtStatus *run(OrtKernelContext *context, work *shared)
{
    const size_t parts = (size_t)shared->parts, chunks = parts * (size_t)shared->chunks;
    if (shared->parts >= WHOLE_PARTS) {
        const size_t workers = parts < WORKERS ? parts : WORKERS;
        return avl_api->KernelContext_ParallelFor(context, take_parts, workers, workers, shared);
    }
    for (size_t part = 0; part < parts; part++)
        prepare_part(shared, part);
    OrtStatus *status =
        avl_api->KernelContext_ParallelFor(context, read_chunk, chunks, chunks, shared);
    return status ? status
                  : avl_api->KernelContext_ParallelFor(context, end_part, parts, 0, shared);
}

OrtStatus *avl_run_few(OrtKernelContext *context, const avl_few_kernels *kernels,
                       const avl_step *step)
{
    const int64_t parts = step->batch * step->kv_heads;
    work shared = {.kernels = kernels, .step = step, .parts = parts,
                   .chunks = kernels->chunks(step), .room = kernels->scratch(step)};
    const int64_t rooms = parts > WORKERS ? WORKERS : parts;
    if (!parts)
        return NULL;
    shared.rooms = aligned_alloc(LINE, (size_t)(rooms * shared.room) * sizeof(float));
    if (!shared.rooms)
        return avl_failed("expected memory for scores, found none");
    OrtStatus *status = run(context, &shared);
    free(shared.rooms);
    return status;
}
