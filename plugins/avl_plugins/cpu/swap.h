// Rows that change places. They lie apart, and no processor guesses where the next one is.
#ifndef AVL_SWAP_H
#define AVL_SWAP_H

#include "ahead.h"

#define SWAPS_AHEAD 8

// As avl_step_kernels has it.
static void swap_rows(char *restrict active, char *restrict parked, int64_t bytes,
                      const int64_t *leaving, const int64_t *entering, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t next = least(i + SWAPS_AHEAD, count - 1);
        fetch_to_write(active + leaving[next] * bytes, bytes);
        fetch_to_write(parked + entering[next] * bytes, bytes);
        char *a = active + leaving[i] * bytes, *b = parked + entering[i] * bytes;
        for (int64_t j = 0; j < bytes; j++) {
            char kept = a[j];
            a[j] = b[j];
            b[j] = kept;
        }
    }
}

#endif
