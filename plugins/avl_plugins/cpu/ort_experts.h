// What ops of mixtures of experts share: rows are put together by expert, so that each expert that some
// row chose is read once, where its weights lie, and no other is.
#ifndef AVL_ORT_EXPERTS_H
#define AVL_ORT_EXPERTS_H

#include "levels.h"
#include "ort_op.h"

// The first inputs of an op; stacks' scales may follow.
enum { AVL_X, AVL_CHOSEN, AVL_SHARES, AVL_GATE_UP, AVL_DOWN };

typedef struct avl_experts avl_experts;

// How an op multiplies. Columns are those `first` to before `end`.
typedef struct avl_expert_products {
    // Once pairs are sorted, and once `inner` is whole; NULL: nothing to do.
    OrtStatus *(*begin)(OrtKernelContext *context, avl_experts *all);
    OrtStatus *(*turn)(OrtKernelContext *context, avl_experts *all);
    // Columns of y: one expert's gate_up or down times some pairs' rows of x or inner.
    void (*open)(const avl_experts *all, int64_t expert, int64_t pair, int64_t count, int64_t first,
                 int64_t end, float *y);
    void (*close)(const avl_experts *all, int64_t expert, int64_t pair, int64_t count, int64_t first,
                  int64_t end, float *y);
} avl_expert_products;

// A pair is a row with an expert that it chose; pairs of an expert lie together.
struct avl_experts {
    const avl_expert_products *products;
    const void *op;            // of the products
    const avl_stacked_kernels *stacked;
    int64_t rows, size, inner_size, experts, each; // each: experts of a row
    const float *x, *shares;
    const int64_t *chosen;
    float *y;
    void *room;        // as many bytes as the op asks for, of its own
    int64_t hits;      // experts that some row chose
    int64_t *ids;      // [hits]
    int64_t *begins;   // [experts + 1] of hits: where their pairs begin
    int64_t *next;     // [experts] where an expert's next pair goes
    int64_t *places;   // [rows, each] pairs of a row, by ascending expert
    int64_t *sources;  // [pairs] rows of pairs
    float *counts;     // [pairs] what a pair's result counts
    float *both;       // [pairs, 2 * inner_size]
    float *inner;      // [pairs, inner_size]
    float *found;      // [pairs, size]
};

// Reads x, chosen and shares, and y, into `to`, whose sizes beside rows and each are known.
OrtStatus *avl_expert_rows(OrtKernelContext *context, const avl_tensor *given, avl_experts *to);
// Fills y, with `room` bytes for the products.
OrtStatus *avl_run_experts(OrtKernelContext *context, avl_experts *all, size_t room);

#endif
