// Rows on their way from memory before they are needed.
#ifndef AVL_AHEAD_H
#define AVL_AHEAD_H

#include <stdint.h>

// Into a loop over rows, so that the compiler sees the loop whole.
#define HELPER static inline __attribute__((always_inline))

// Bytes of a row's successors that are on their way from memory, into the second cache, for every
// query head that reads them: the more is computed with a row, the more there have to be.
#define AHEAD 2048
#define LINE 64 // bytes that a cache reads at a time

HELPER int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HELPER int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The distance of the bytes that a step asks for, in which so many heads read a row. One head
// computes so little that it waits for what was asked for a row's time ago: hence one more.
HELPER int64_t step_ahead(int64_t heads) { return AHEAD * (heads + 1); }

// Begin to read so many bytes, if it is a positive number.
HELPER void fetch(const void *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += LINE)
        __builtin_prefetch((const char *)from + i, 0, 2);
}

// The same, into the first cache, of bytes that are to be written.
HELPER void fetch_to_write(const char *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += LINE)
        __builtin_prefetch(from + i, 1, 3);
}

#endif
