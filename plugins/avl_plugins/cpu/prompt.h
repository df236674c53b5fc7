// Attention of a prompt's rows over a split cache: what the kernel of SplitCachePrompt computes.
#ifndef AVL_PROMPT_H
#define AVL_PROMPT_H

#include "attention.h"
#include "ort_abi.h"

// Threads that work at once, at most. Memory that none of them takes is never touched.
enum { AVL_PROMPT_WORKERS = 64 };

// How a call is cut into tasks, and where they leave what they find.
//
// A part is a KV head of a sequence. Its query rows [G * S] are those of all its query heads, in
// the order of new rows: row i is new row i / G of the group's head i % G. Their numbers lie as in
// q and out, [G, S, D].
typedef struct avl_prompt {
    const avl_step *step;
    int64_t group, parts;
    int64_t blocks, block; // of query rows; how many rows are in one
    int64_t spans, span;   // of keys; how many keys are in one
    int64_t mass_spans, mass_span;
    int64_t room;                  // numbers of a worker's memory, a multiple of 16
    float *rooms;                  // [AVL_PROMPT_WORKERS, room], aligned to 64 bytes
    int64_t *wanted, *wanted_rows; // [B] how many new rows have a weight; [B, S] which
    float *tops, *sums; // [parts, G * S] greatest scores, and sums of weights relative to them
    float *span_tops, *span_sums, *span_out; // [parts, spans, G * S] and [..., D], if spans > 1
    void *memory;                            // what all of these are in
} avl_prompt;

// Plans `step`, all of which is filled in; 0 where there is no memory. Its memory is to be freed.
int avl_plan_prompt(const avl_step *step, avl_prompt *prompt);

static inline int64_t avl_prompt_tasks(const avl_prompt *prompt)
{
    return prompt->parts * prompt->blocks * prompt->spans;
}

// What prompt.c is compiled to for one level of the processor's instructions: `attend` for every
// task, and `merge` for every part if there is more than one span; then `sum_masses` for every span
// of `mass_spans` in every part, into masses that are 0. Each in any order and any threads at once,
// with a room that no other thread has meanwhile.
typedef void avl_prompt_task(const avl_prompt *prompt, int64_t index, float *room);

typedef struct avl_prompt_kernels {
    avl_prompt_task *attend, *merge, *sum_masses;
} avl_prompt_kernels;

extern const avl_prompt_kernels avl_prompt_base, avl_prompt_avx2, avl_prompt_avx512;

// Computes `step` in ONNX Runtime's threads.
OrtStatus *avl_run_prompt(OrtKernelContext *context, const avl_prompt_kernels *kernels,
                          const avl_step *step);

#endif
