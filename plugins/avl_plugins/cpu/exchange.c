// A core exchanged for another: what `kv` asks for after a check that ranks. NumPy would copy each
// plane's rows out and back, and wait for every line of memory by itself.
#include "exchange.h"

#include "ahead.h"
#include "levels.h"

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

__attribute__((visibility("default")))
int avl_exchange(const avl_places *parts, int64_t planes, const int64_t *leaving,
                 const int64_t *entering, int64_t count)
{
    if (!are_there(parts, planes, leaving, entering, count))
        return 0;
    const avl_step_kernels *kernels = avl_best_step();
    for (int64_t p = 0; p < planes; p++) {
        const int64_t bytes = parts[p].bytes;
        for (int64_t head = 0; head < parts[p].heads; head++) {
            char *active = parts[p].active + head * parts[p].active_room * bytes;
            char *parked = parts[p].parked + head * parts[p].parked_room * bytes;
            kernels->swap_rows(active, parked, bytes, leaving, entering, count);
        }
    }
    return 1;
}
