#include "refresh.h"

#include <string.h>

static _Thread_local const avl_refresh *offered;
static _Thread_local int64_t offers;

__attribute__((visibility("default")))
void avl_offer(avl_refresh *layers, int64_t count)
{
    offered = layers;
    offers = count;
}

static int fits(const avl_refresh *refresh, const avl_step *step)
{
    for (int64_t row = 0; row < step->batch; row++)
        if (refresh->core[row] < 0 || refresh->core[row] > step->active_len[row])
            return 0;
    return refresh->active == step->active && refresh->parked == step->parked &&
           refresh->labels >= step->active && refresh->parked_labels >= step->parked &&
           step->weightings;
}

const avl_refresh *avl_offered(const avl_step *step)
{
    const void *keys = step->codes ? (const void *)step->codes->k_active : step->k_active;
    for (int64_t i = 0; i < offers; i++)
        if (offered[i].k_active == keys)
            return fits(&offered[i], step) ? &offered[i] : NULL;
    return NULL;
}

// The count-th highest of n keys.
static uint32_t limit_of(const uint32_t *keys, int64_t n, int64_t count)
{
    uint32_t limit = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        uint32_t higher = limit | bit;
        int32_t reached = 0;
        for (int64_t j = 0; j < n; j++)
            reached += keys[j] >= higher;
        limit = reached >= count ? higher : limit;
    }
    return limit;
}

// Attention that the image rows of a sequence received. It is never negative, and then the bits of
// floats have the order of their values.
static void score(const avl_step *step, int64_t row, int64_t core, int64_t parked, uint32_t *keys)
{
    float *scores = (float *)keys;
    memset(scores, 0, (size_t)(core + parked) * sizeof(float));
    for (int64_t h = row * step->kv_heads; h < (row + 1) * step->kv_heads; h++) {
        const float *active = step->mass_active + h * step->weightings * step->active;
        const float *apart = step->mass_parked + h * step->weightings * step->parked;
        for (int64_t j = 0; j < core; j++)
            scores[j] += active[j];
        for (int64_t j = 0; j < parked; j++)
            scores[core + j] += apart[j];
    }
}

void avl_rank(const avl_refresh *refresh, const avl_step *step, int64_t row, avl_swaps *swaps)
{
    const int64_t core = refresh->core[row], parked = step->parked_len[row], n = core + parked;
    const int64_t *positions = refresh->positions + row * step->kv_heads * refresh->labels;
    const int64_t *apart = refresh->parked_positions + row * refresh->parked_labels;
    uint32_t *keys = swaps->keys, *ties = keys + n; // a tie's key is higher, the lower its position
    int64_t above = 0, equal = 0, left = 0, entered = 0;
    swaps->count = refresh->moved[row] = 0;
    if (!core)
        return;
    score(step, row, core, parked, keys);
    const uint32_t limit = limit_of(keys, n, core);
    for (int64_t j = 0; j < n; j++) {
        above += keys[j] > limit;
        equal += keys[j] == limit;
    }
    uint32_t tie = 0;
    memset(ties, 0, (size_t)n * sizeof *ties);
    if (above + equal > core) {
        for (int64_t j = 0; j < n; j++) {
            int64_t position = j < core ? positions[j] : apart[j - core];
            ties[j] = keys[j] == limit ? UINT32_MAX - (uint32_t)position : 0;
        }
        tie = limit_of(ties, n, core - above);
    }
    // Without branches, as no processor guesses who is chosen.
    for (int64_t j = 0; j < core; j++) {
        swaps->leaving[left] = j;
        left += keys[j] < limit || (keys[j] == limit && ties[j] < tie);
    }
    for (int64_t j = core; j < n; j++) {
        swaps->entering[entered] = j - core;
        entered += keys[j] > limit || (keys[j] == limit && ties[j] >= tie);
    }
    swaps->count = refresh->moved[row] = left;
}

void avl_label_head(const avl_refresh *refresh, const avl_step *step, int64_t row, int64_t head,
                    const avl_swaps *swaps)
{
    int64_t *positions = refresh->positions + (row * step->kv_heads + head) * refresh->labels;
    const int64_t *apart = refresh->parked_positions + row * refresh->parked_labels;
    for (int64_t i = 0; i < swaps->count; i++)
        positions[swaps->leaving[i]] = apart[swaps->entering[i]];
}

void avl_label(const avl_refresh *refresh, const avl_step *step, int64_t row,
               const avl_swaps *swaps)
{
    int64_t *positions = refresh->positions + row * step->kv_heads * refresh->labels;
    int64_t *apart = refresh->parked_positions + row * refresh->parked_labels;
    for (int64_t i = 0; i < swaps->count; i++) {
        int64_t *active = &positions[swaps->leaving[i]], *parked = &apart[swaps->entering[i]];
        int64_t left = *active;
        *active = *parked;
        *parked = left;
    }
}
