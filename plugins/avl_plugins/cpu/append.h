// Rows of a decode step, copied into a cache.
#ifndef AVL_APPEND_H
#define AVL_APPEND_H

#include <stdint.h>

// One plane of one sequence in one layer, [heads, room] rows of `bytes` each, and where the new row
// of each head comes from: `step` bytes after that of the head before.
typedef struct avl_rows {
    char *to;
    const char *from;
    int64_t heads, room, step, bytes;
} avl_rows;

// Copies a row for each of `planes` times `count` parts; the i-th part of every plane goes to slot
// slots[i]. Returns 0, with nothing copied, where a slot is not within its part's room.
int avl_append(const avl_rows *parts, const int64_t *slots, int64_t planes, int64_t count);

#endif
