// Stored weights as float32, in registers, for the files that read them.
#ifndef AVL_WIDEN_H
#define AVL_WIDEN_H

#include "linear.h"

#define HELPER static inline __attribute__((always_inline))

// Registers hold LANES numbers, and there are REGISTERS of them.
#if defined(__aarch64__)
#include "lanes_neon.h"
#else
#include "lanes_x86.h"
#endif

HELPER int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

HELPER const char *row_of(const avl_stored *w, avl_element element, int64_t output)
{
    return (const char *)w->data + output * w->inputs * avl_size_of(element);
}

// LANES elements of a row, from the one at `at` on.
HELPER lanes widen(const char *row, int64_t at, avl_element element)
{
    const char *from = row + at * avl_size_of(element);
    return element == AVL_SINGLE ? *(const lanes *)from
           : element == AVL_HALF ? from_halves(from)
           : element == AVL_BYTE ? from_bytes(from)
                                 : from_bfloats(from);
}

#endif
