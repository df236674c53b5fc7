// What the ops of attention share.
#ifndef AVL_ORT_ATTENTION_H
#define AVL_ORT_ATTENTION_H

#include "few.h"
#include "ort_op.h"
#include "prompt_amx.h"

typedef struct avl_attention_op {
    float scale;
    int biased; // has biases behind its other inputs
    const avl_step_kernels *step;
    const avl_few_kernels *few;
    const avl_prompt_kernels *prompt;
    const avl_prompt_tiles *tiles, *code_tiles; // of prompts, or NULL; of rows in codes of 8 bits
    const avl_code_kernels *codes;
} avl_attention_op;

// An op's kernels, of the best level that this processor has, without tiles and with them.
OrtStatus *avl_create_attention(const OrtCustomOp *op, const OrtApi *unused_api,
                                const OrtKernelInfo *info, void **kernel);
OrtStatus *avl_create_attention_on_tiles(const OrtCustomOp *op, const OrtApi *unused_api,
                                         const OrtKernelInfo *info, void **kernel);
void avl_destroy_attention(void *kernel);

// Whether inputs have the sizes that are expected of their axes, lengths are within capacities, and
// query heads come in whole groups.
int avl_sizes_fit(const avl_step *step, const avl_tensor *given, const int64_t (*expected)[4],
                  size_t count);

// Computes a decode step, all of which is filled in but its scratch memory.
OrtStatus *avl_compute_step(OrtKernelContext *context, const avl_attention_op *op, avl_step *step);

// Computes several new rows, all of which are filled in.
OrtStatus *avl_compute_rows(OrtKernelContext *context, const avl_attention_op *op,
                            const avl_step *step);

#endif
