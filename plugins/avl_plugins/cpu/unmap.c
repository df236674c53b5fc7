#define _GNU_SOURCE
#include "unmap.h"

#if defined(__linux__)

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

// Bits of an entry of /proc/self/pagemap: in memory, swapped out, of a file.
#define PRESENT ((uint64_t)1 << 63)
#define SWAPPED ((uint64_t)1 << 62)
#define OF_FILE ((uint64_t)1 << 61)

enum { ENTRIES = 512 };

// Whether pages from `first` to before `end` hold nothing but what a file has: where a page was
// written to, memory has a copy of its own.
static int are_of_file(int pagemap, uintptr_t first, uintptr_t end)
{
    uint64_t entries[ENTRIES];
    for (uintptr_t page = first; page < end; page += ENTRIES) {
        size_t count = end - page < ENTRIES ? end - page : ENTRIES, bytes = count * sizeof *entries;
        if (pread(pagemap, entries, bytes, (off_t)(page * sizeof *entries)) != (ssize_t)bytes)
            return 0;
        for (size_t i = 0; i < count; i++)
            if ((entries[i] & SWAPPED) || ((entries[i] & PRESENT) && !(entries[i] & OF_FILE)))
                return 0;
    }
    return 1;
}

void avl_unmap(const void *at, size_t bytes)
{
    uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)at + size - 1) / size, end = ((uintptr_t)at + bytes) / size;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return;
    if (first < end && are_of_file(pagemap, first, end))
        madvise((void *)(first * size), (end - first) * size, MADV_DONTNEED);
    close(pagemap);
}

#else

void avl_unmap(const void *at, size_t bytes) { (void)at, (void)bytes; }

#endif
