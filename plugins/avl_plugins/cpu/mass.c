// Attention that text rows gave, added to what cached rows have received: what `kv` asks for after
// each decode step under a text budget.
#include "mass.h"

__attribute__((visibility("default")))
int avl_add_masses(const avl_masses *parts, const int64_t *lengths, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (lengths[i] < 0 || lengths[i] >= parts[i].room)
            return 0;
    for (int64_t i = 0; i < count; i++) {
        const avl_masses *part = &parts[i];
        for (int64_t head = 0; head < part->heads; head++) {
            float *restrict to = part->to + head * part->room;
            if (part->from) {
                const float *restrict from = part->from + head * part->step;
                for (int64_t row = 0; row < lengths[i]; row++)
                    to[row] += from[row];
            }
            to[lengths[i]] = part->fresh[head * part->fresh_step];
        }
    }
    return 1;
}
