// Attention of a prompt's rows over a split cache: what the kernel of SplitCachePrompt computes.
#ifndef AVL_PROMPT_H
#define AVL_PROMPT_H

#include "attention.h"
#include "ort_abi.h"

// Query rows of a task: its keys are packed once for all of them, and their sums stay in the core's
// second cache.
enum { AVL_PROMPT_BLOCK = 256 };

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
    int64_t workers;               // threads at once, at most; rooms of others are never touched
    int64_t room;                  // numbers of one's memory, a multiple of 16
    int64_t keys;                  // of the longest sequence, new ones included
    float *rooms;                  // [workers, room], aligned to 64 bytes
    int64_t *wanted, *wanted_rows; // [B] how many new rows have a weight; [B, S] which
    float *tops, *sums; // [parts, G * S] greatest scores, and sums of weights relative to them
    float *span_tops, *span_sums, *span_out; // [parts, spans, G * S] and [..., D] of each span
    float *scores; // [parts, G * S, keys]; NULL, or what the first stage leaves for masses
    void *memory;  // what all of these are in
} avl_prompt;

static inline int64_t avl_prompt_tasks(const avl_prompt *prompt)
{
    return prompt->parts * prompt->blocks * prompt->spans;
}

// A task of a stage, with a room that no other thread has meanwhile. A stage's tasks are computed in
// any order, and in any threads at once.
typedef void avl_prompt_task(const avl_prompt *prompt, int64_t index, float *room);

// What prompt.c is compiled to for one level of the processor's instructions. Stages are `attend`
// for every task, `merge` for every part if there is more than one span; and where rows have a
// weight, for every span of `mass_spans` in every part, `sum_masses`, into masses that are 0.
//
// Where the first stage was that of `avl_prompt_tiles`, which leaves no sums of weights, those of
// float32 scores are found before: `find_sums` for every span of `mass_spans` in every part, and
// `merge_sums` for every part.
typedef struct avl_prompt_kernels {
    avl_prompt_task *attend, *merge, *find_sums, *merge_sums, *sum_masses;
} avl_prompt_kernels;

extern const avl_prompt_kernels avl_prompt_base, avl_prompt_avx2, avl_prompt_avx512;

// Another first stage, for AVL_TILED_ROWS new rows or more: its tasks have one span.
typedef struct avl_prompt_tiles {
    avl_prompt_task *attend;
    int64_t (*room)(int64_t block, int64_t head_dim); // numbers, for so many query rows at most
    int64_t block, rows; // query rows of a task, about, and of those that are computed together
    int64_t side, most;  // head sizes are to be multiples of `side`, and at most `most`
} avl_prompt_tiles;

// Drafts that are checked, and a chat's short turns, are computed in float32 as a decode step is.
enum { AVL_TILED_ROWS = 64 };

// Plans `step`, all of which is filled in, for `tiles` unless it is NULL; 0 where there is no
// memory. Its memory is to be freed.
int avl_plan_prompt(const avl_step *step, const avl_prompt_tiles *tiles, avl_prompt *prompt);

// Computes `step` in ONNX Runtime's threads; `tiles` may be NULL.
OrtStatus *avl_run_prompt(OrtKernelContext *context, const avl_prompt_kernels *kernels,
                          const avl_prompt_tiles *tiles, const avl_step *step);

#endif
