// A new row of every sequence goes behind those that its cache holds: what `kv` asks for after a
// decode step, as some ten copies of a few hundred bytes a layer take Python longer than the bytes.
#include "append.h"

#include <string.h>

__attribute__((visibility("default")))
int avl_append(const avl_rows *parts, const int64_t *slots, int64_t planes, int64_t count)
{
    for (int64_t i = 0; i < planes * count; i++)
        if (slots[i % count] < 0 || slots[i % count] >= parts[i].room)
            return 0;
    // A step has emptied the processor's caches, so that nearly every line is a miss: they are
    // asked for together, as a store waits for its own alone.
    for (int64_t i = 0; i < planes * count; i++) {
        const avl_rows *part = &parts[i];
        const char *to = part->to + slots[i % count] * part->bytes;
        for (int64_t head = 0; head < part->heads; head++)
            for (int64_t at = 0; at < part->bytes; at += 64)
                __builtin_prefetch(to + head * part->room * part->bytes + at, 1);
    }
    for (int64_t i = 0; i < planes * count; i++) {
        const avl_rows *part = &parts[i];
        char *to = part->to + slots[i % count] * part->bytes;
        for (int64_t head = 0; head < part->heads; head++)
            memcpy(to + head * part->room * part->bytes, part->from + head * part->step,
                   (size_t)part->bytes);
    }
    return 1;
}
