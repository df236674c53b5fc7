#include "evict.h"

#include <string.h>

enum {
    MOST = 8,    // rows that go at once; a step of a conversation has one, rarely two
    HEADS = 256, // what fits the stack
};

// Rows of a head that go, by their slots.
typedef struct gone {
    int64_t slots[MOST];
    int64_t count;
} gone;

static int is_text(const avl_budget *budget, int64_t position)
{
    return position >= 0 && position < budget->tokens && budget->evictable[position];
}

// The position from which on the newest `recent` text tokens of the conversation lie.
static int64_t newest(const avl_budget *budget)
{
    int64_t position = budget->tokens;
    for (int64_t left = budget->recent; left && position;)
        left -= is_text(budget, --position);
    return position;
}

// Finds the rows that go from a head, ascending. Returns 0 where it cannot tell.
static int choose(const avl_budget *budget, const int64_t *positions, const float *mass,
                  int64_t begin, int64_t end, int64_t count, int64_t from, gone *found)
{
    int64_t texts = 0, recent = 0, worst[MOST], held = 0; // the worst first
    for (int64_t slot = begin; slot < end; slot++) {
        const int64_t position = positions[slot];
        if (!is_text(budget, position))
            continue;
        texts++;
        if (position >= from) {
            recent++;
            continue;
        }
        if (mass[slot] != mass[slot])
            return 0;
        int64_t at = held;
        while (at && (mass[slot] < mass[worst[at - 1]]
                      || (mass[slot] == mass[worst[at - 1]] && position > positions[worst[at - 1]])))
            at--;
        if (at == count)
            continue;
        held += held < count;
        memmove(&worst[at + 1], &worst[at], (size_t)(held - 1 - at) * sizeof *worst);
        worst[at] = slot;
    }
    if (texts != budget->stay + count || recent != budget->recent || held != count)
        return 0;
    for (int64_t i = 0; i < count; i++) { // sorted by insertion
        int64_t at = i;
        for (; at && found->slots[at - 1] > worst[i]; at--)
            found->slots[at] = found->slots[at - 1];
        found->slots[at] = worst[i];
    }
    found->count = count;
    return 1;
}

// Rows from the end, which stay, fill the holes before it, both in ascending order.
static void fill(const avl_rows *part, int64_t head, int64_t end, const gone *rows)
{
    const int64_t remaining = end - rows->count;
    char *first = part->to + head * part->room * part->bytes;
    int64_t filler = remaining, at_end = 0;
    while (at_end < rows->count && rows->slots[at_end] < remaining)
        at_end++;
    for (int64_t hole = 0, left = at_end; hole < at_end; hole++, filler++) {
        for (; left < rows->count && rows->slots[left] == filler; left++)
            filler++;
        memcpy(first + rows->slots[hole] * part->bytes, first + filler * part->bytes,
               (size_t)part->bytes);
    }
}

static int evict_layer(const avl_rows *parts, int64_t stride, int64_t planes, int64_t *length,
                       int64_t begin, const avl_budget *budget, int64_t from)
{
    const avl_rows *labels = &parts[(planes - 2) * stride], *received = labels + stride;
    const int64_t end = *length, heads = labels->heads, room = labels->room;
    const int64_t *positions = (const int64_t *)labels->to;
    int64_t count = -budget->stay;
    if (end - begin <= budget->stay)
        return 1;
    for (int64_t slot = begin; slot < end; slot++)
        count += is_text(budget, positions[slot]);
    if (count <= 0)
        return 1;
    if (count > MOST || heads > HEADS)
        return 0;
    gone rows[HEADS];
    for (int64_t head = 0; head < heads; head++)
        if (!choose(budget, positions + head * room, (const float *)received->to + head * room,
                    begin, end, count, from, &rows[head]))
            return 0;
    for (int64_t plane = 0; plane < planes; plane++)
        for (int64_t head = 0; head < heads; head++)
            fill(&parts[plane * stride], head, end, &rows[head]);
    *length -= count;
    return 1;
}

__attribute__((visibility("default")))
int avl_evict_text(const avl_rows *parts, int64_t *lengths, const int64_t *image_rows,
                   int64_t planes, int64_t layers, int64_t batch, int64_t seq,
                   const avl_budget *budget)
{
    const int64_t stride = layers * batch, from = newest(budget);
    int done = 1;
    for (int64_t layer = 0; layer < layers; layer++) {
        const int64_t at = layer * batch + seq;
        done &= evict_layer(&parts[at], stride, planes, &lengths[at], image_rows[at], budget, from);
    }
    return done;
}
