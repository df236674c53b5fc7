#define _GNU_SOURCE
#include "unmap.h"

#include <stdint.h>
#include <stdio.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(__linux__)

// Whether all of [first, end) is one mapping of a file that nothing is written to.
static int is_file(uintptr_t first, uintptr_t end)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps)
        return 0;
    char line[512];
    int found = 0;
    while (!found && fgets(line, sizeof line, maps)) {
        unsigned long start, stop, inode;
        char may_write;
        if (sscanf(line, "%lx-%lx %*c%c%*c%*c %*x %*x:%*x %lu", &start, &stop, &may_write,
                   &inode) == 4)
            found = inode && may_write == '-' && start <= first && end <= stop;
    }
    fclose(maps);
    return found;
}

void avl_unmap(const void *at, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)at + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)at + bytes) / page * page;
    if (first < end && is_file(first, end))
        madvise((void *)first, end - first, MADV_DONTNEED);
}

#else

void avl_unmap(const void *at, size_t bytes) { (void)at, (void)bytes; }

#endif
