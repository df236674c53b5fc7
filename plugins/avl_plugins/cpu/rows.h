// Rows of a cache changing places.
#ifndef AVL_ROWS_H
#define AVL_ROWS_H

#include <stdint.h>

// Swaps rows out[i] of `active` [heads, active_rows, row_bytes] with rows into[i] of `parked`
// [heads, parked_rows, row_bytes], for every head and i < count. Each of `out` and of `into` names
// a row once. Returns 0, or -1 and moves nothing if a row is not there.
int avl_swap_rows(char *active, char *parked, int64_t heads, int64_t active_rows,
                   int64_t parked_rows, int64_t row_bytes, const int64_t *out, const int64_t *into,
                   int64_t count);

#endif
