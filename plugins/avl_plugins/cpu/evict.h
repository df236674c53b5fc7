// Text that a budget has no room for leaves a cache, after each decode step.
#ifndef AVL_EVICT_H
#define AVL_EVICT_H

#include "append.h"

// A sequence's text budget: `stay` rows of each head, the `recent` newest among them.
typedef struct avl_budget {
    const uint8_t *evictable; // [tokens], which of the conversation's tokens may go
    int64_t tokens, stay, recent;
} avl_budget;

// Brings one sequence, number `seq` of `batch`, down to its budget in each of `layers` layers. What
// stays is the newest text, then that with the most attention, of equal ones the older (H2O); rows
// from the end fill the holes.
//
// parts: [planes, layers, batch]; the last two planes are positions, int64, and attention received,
//     float32. What they copy from is not looked at.
// lengths: [layers, batch], shortened by what has gone. image_rows: as many, rows in front that are
//     no text.
//
// Returns 0 where something is left to do, as more than a few rows have to go, the newest of a head
// are not those of the conversation, heads hold unequal numbers of text rows, or attention is NaN.
int avl_evict_text(const avl_rows *parts, int64_t *lengths, const int64_t *image_rows,
                   int64_t planes, int64_t layers, int64_t batch, int64_t seq,
                   const avl_budget *budget);

#endif
