// Attention that cached rows receive, added up.
#ifndef AVL_MASS_H
#define AVL_MASS_H

#include <stdint.h>

// The rows of one sequence in one layer: what `heads` heads of `room` rows each have received so
// far, what a step gave them, `step` floats from head to head (no rows of it: NULL), and what it
// gave the row that it made, `fresh_step` floats from head to head.
typedef struct avl_masses {
    float *to;
    const float *from, *fresh;
    int64_t heads, room, step, fresh_step;
} avl_masses;

// Adds for each of `count` parts what its lengths[i] rows received, and sets that of the row behind
// them. Returns 0, with nothing written, where one has no such row.
int avl_add_masses(const avl_masses *parts, const int64_t *lengths, int64_t count);

#endif
