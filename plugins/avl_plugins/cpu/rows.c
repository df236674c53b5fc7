#include "rows.h"

#include <string.h>

#define PIECE 64 // bytes held at a time: a cache line
#define AHEAD 6  // rows fetched before their turn: they lie apart, so no processor foresees them

static void fetch(const char *row, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += PIECE)
        __builtin_prefetch(row + at, 1);
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
    memcpy(kept, a + at, (size_t)(bytes - at));
    memcpy(a + at, b + at, (size_t)(bytes - at));
    memcpy(b + at, kept, (size_t)(bytes - at));
}

static int there(const int64_t *slots, int64_t count, int64_t rows)
{
    for (int64_t i = 0; i < count; i++)
        if (slots[i] < 0 || slots[i] >= rows)
            return 0;
    return 1;
}

__attribute__((visibility("default")))
int avl_swap_rows(char *active, char *parked, int64_t heads, int64_t active_rows,
                  int64_t parked_rows, int64_t row_bytes, const int64_t *out, const int64_t *into,
                  int64_t count)
{
    if (!there(out, count, active_rows) || !there(into, count, parked_rows))
        return -1;
    for (int64_t h = 0; h < heads; h++) {
        char *a = active + h * active_rows * row_bytes, *p = parked + h * parked_rows * row_bytes;
        for (int64_t i = 0; i < count; i++) {
            if (i + AHEAD < count) {
                fetch(a + out[i + AHEAD] * row_bytes, row_bytes);
                fetch(p + into[i + AHEAD] * row_bytes, row_bytes);
            }
            swap(a + out[i] * row_bytes, p + into[i] * row_bytes, row_bytes);
        }
    }
    return 0;
}
