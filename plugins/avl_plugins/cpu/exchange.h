// Rows of a cache that change places.
#ifndef AVL_EXCHANGE_H
#define AVL_EXCHANGE_H

#include <stdint.h>

// One plane of one sequence in one layer: active and parked rows of `heads` heads, of which a head
// has `active_room` and `parked_room`, `bytes` each.
typedef struct avl_places {
    char *active, *parked;
    int64_t heads, active_room, parked_room, bytes;
} avl_places;

// Swaps row leaving[i] of the active ones with row entering[i] of the parked ones, in every head of
// each of `planes` planes, for `count` pairs. Returns 0, with nothing swapped, where one is not there.
int avl_exchange(const avl_places *parts, int64_t planes, const int64_t *leaving,
                 const int64_t *entering, int64_t count);

#endif
