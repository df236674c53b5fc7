// A refresh (A-VL): image rows are ranked by the attention of the step that reads them all, and the
// highest become the core, whose rows are active.
#ifndef AVL_REFRESH_H
#define AVL_REFRESH_H

#include "attention.h"

// What the host says of one layer before a step. Graphs cannot say that an op changes its inputs,
// so this goes past them: the host owns the cache and has its rows swapped while the processor
// still holds what it just read of them.
typedef struct avl_refresh {
    const void *k_active;   // the layer's, by which a step finds its own refresh
    int64_t active, parked; // A and P of the layer
    int64_t labels, parked_labels; // room for labels of a head's and of a sequence's rows
    const int64_t *core;    // [B] rows of the core, the first active ones; 0: nothing to refresh
    int64_t *positions; // [B, Hkv, labels] labels of the rows, which are swapped with them;
    int64_t *parked_positions; // [B, parked_labels] image rows have the same in every head
    int64_t *moved;            // [B] out: rows swapped; untouched if no step took this
} avl_refresh;

// The swaps of one sequence.
typedef struct avl_swaps {
    int64_t *leaving, *entering; // [P + 1] active and parked slots, ascending
    int64_t count;
    uint32_t *keys; // [2 * (A + P)], scratch memory of the ranking
} avl_swaps;

// Refreshes for the steps that this thread runs from now on; with a count of 0 for none.
void avl_offer(avl_refresh *layers, int64_t count);

// This thread's refresh of the layer that `step` computes, or NULL.
const avl_refresh *avl_offered(const avl_step *step);

// Ranks the rows of one sequence, whose masses are there, by the first of them, summed over heads.
// Equal attention favours the lower position.
void avl_rank(const avl_refresh *refresh, const avl_step *step, int64_t row, avl_swaps *swaps);

// Has the labels of one sequence follow its rows: those of every head but the first, in any order
// and in any threads at once, and then the others.
void avl_label_head(const avl_refresh *refresh, const avl_step *step, int64_t row, int64_t head,
                    const avl_swaps *swaps);
void avl_label(const avl_refresh *refresh, const avl_step *step, int64_t row,
               const avl_swaps *swaps);

#endif
