// A core exchanged for another: what `kv` asks for after a check that ranks. NumPy would copy each
// plane's rows out and back, and wait for every line of memory by itself.
#include "exchange.h"

#include "ahead.h"

#include <string.h>

enum { PAIRS_AHEAD = 12, PIECE = 16 };

static int are_there(const avl_places *parts, int64_t planes, const int64_t *leaving,
                     const int64_t *entering, int64_t count)
{
    int64_t active = INT64_MAX, parked = INT64_MAX;
    for (int64_t p = 0; p < planes; p++) {
        active = least(active, parts[p].active_room);
        parked = least(parked, parts[p].parked_room);
    }
    for (int64_t i = 0; i < count; i++)
        if (leaving[i] < 0 || leaving[i] >= active || entering[i] < 0 || entering[i] >= parked)
            return 0;
    return 1;
}

static void swap(char *restrict a, char *restrict b, int64_t bytes)
{
    char kept[PIECE];
    int64_t at = 0;
    for (; at + PIECE <= bytes; at += PIECE) {
        memcpy(kept, a + at, PIECE);
        memcpy(a + at, b + at, PIECE);
        memcpy(b + at, kept, PIECE);
    }
    for (; at < bytes; at++) {
        const char one = a[at];
        a[at] = b[at];
        b[at] = one;
    }
}

__attribute__((visibility("default")))
int avl_exchange(const avl_places *parts, int64_t planes, const int64_t *leaving,
                 const int64_t *entering, int64_t count)
{
    if (!are_there(parts, planes, leaving, entering, count))
        return 0;
    for (int64_t p = 0; p < planes; p++) {
        const int64_t bytes = parts[p].bytes;
        for (int64_t head = 0; head < parts[p].heads; head++) {
            char *active = parts[p].active + head * parts[p].active_room * bytes;
            char *parked = parts[p].parked + head * parts[p].parked_room * bytes;
            for (int64_t i = 0; i < count; i++) {
                const int64_t next = least(i + PAIRS_AHEAD, count - 1);
                fetch_to_write(active + leaving[next] * bytes, bytes);
                fetch_to_write(parked + entering[next] * bytes, bytes);
                swap(active + leaving[i] * bytes, parked + entering[i] * bytes, bytes);
            }
        }
    }
    return 1;
}
