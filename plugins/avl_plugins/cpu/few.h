// Attention of a few new rows over a split cache, as drafts have that are checked: rows of the cache
// are read once for all of them.
#ifndef AVL_FEW_H
#define AVL_FEW_H

#include "attention.h"
#include "ort_abi.h"

enum { AVL_FEW_ROWS = 16 };

// What few.c is compiled to for one level of the processor's instructions. Parts are those below
// B * Hkv, a KV head of a sequence each; chunks have numbers from 0 on, those of part 0 first, and
// there are as many of each part. `prepare` comes first, for every part, then `score_keys` and then
// `sum_values` for every chunk, and then, for every part, `sum_masses` if there are masses, and
// `merge`; parts and chunks in any order and in any threads at once. `room` is a part's own memory.
typedef struct avl_few_kernels {
    int64_t (*scratch)(const avl_step *step); // floats of a room, a multiple of 16; rooms are aligned
    int64_t (*chunks)(const avl_step *step);  // of a part
    void (*prepare)(const avl_step *step, int64_t part, float *room);
    void (*score_keys)(const avl_step *step, int64_t chunk, float *room);
    void (*sum_values)(const avl_step *step, int64_t chunk, float *room);
    void (*sum_masses)(const avl_step *step, int64_t part, float *room);
    void (*merge)(const avl_step *step, int64_t part, float *room);
} avl_few_kernels;

// For x86-64 alone above the base: AVX2 with FMA, AVX-512, that with VNNI, and AMX. Without functions
// where the compiler did not know a level.
extern const avl_few_kernels avl_few_base, avl_few_avx2, avl_few_avx512, avl_few_vnni, avl_few_amx;

// Whether a step is for them.
static inline int avl_is_few(const avl_step *step)
{
    return step->rows > 1 && step->rows <= AVL_FEW_ROWS && !step->mutual &&
           !(step->codes && step->codes->bits != 8) && !step->bias_active;
}

// Computes `step` in ONNX Runtime's threads.
OrtStatus *avl_run_few(OrtKernelContext *context, const avl_few_kernels *kernels,
                       const avl_step *step);

#endif
