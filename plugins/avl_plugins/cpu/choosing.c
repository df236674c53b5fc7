#include "choosing.h"

#include "levels.h"

#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

static const avl_cosines *cosines_of(const avl_likeness *of)
{
    const avl_likeness_kernels *best = avl_best_likeness();
    return of->fine ? &best->fine : &best->cosines;
}

EXPORTED void avl_unit_panels(const avl_likeness *of, int64_t first, int64_t end)
{
    for (; first < end; first++)
        cosines_of(of)->unit(of, first);
}

EXPORTED void avl_compare_panels(const avl_likeness *of, int64_t first, int64_t end)
{
    for (; first < end; first++)
        cosines_of(of)->compare(of, first);
}

enum { GONE, EVEN, ODD };

EXPORTED void avl_find_likest(const avl_repeats *of, int64_t first, int64_t end)
{
    for (; first < end; first++)
        avl_best_likeness()->likest(of, first);
}

// The greatest likeness of a token to one of `count` that are odd.
static float likeness_to(const avl_repeats *of, int64_t token, const int64_t *odd, int64_t count)
{
    const float *near = of->near + token * of->tokens;
    const int32_t *likest = of->likest + token * of->known;
    for (int64_t i = 0; i < of->known; i++)
        if (of->states[likest[i]] == ODD)
            return of->alike[token * of->known + i];
    float found = near[odd[0]];
    for (int64_t i = 1; i < count; i++)
        found = near[odd[i]] > found ? near[odd[i]] : found;
    return found;
}

// What is the lower, the more alike: and of equally alike tokens the lower for the first.
static uint64_t key_of(float alike, int64_t token)
{
    uint32_t bits;
    memcpy(&bits, &alike, sizeof bits);
    if (bits == 1u << 31) // the zero below zero, which is equal to the other
        bits = 0;
    bits ^= bits >> 31 ? 0 : ~(1u << 31);
    return (uint64_t)bits << 32 | (uint64_t)token;
}

// Sorts numbers by one byte after another; those in which all agree cost nothing. Returns where they
// are then.
static uint64_t *sorted(uint64_t *keys, uint64_t *room, int64_t count)
{
    int32_t counts[8][256] = {{0}};
    for (int64_t i = 0; i < count; i++)
        for (int byte = 0; byte < 8; byte++)
            counts[byte][keys[i] >> 8 * byte & 255]++;
    for (int byte = 0; byte < 8; byte++) {
        int32_t *starts = counts[byte], start = 0;
        if (starts[keys[0] >> 8 * byte & 255] == count)
            continue;
        for (int value = 0; value < 256; value++) {
            const int32_t those = starts[value];
            starts[value] = start;
            start += those;
        }
        for (int64_t i = 0; i < count; i++)
            room[starts[keys[i] >> 8 * byte & 255]++] = keys[i];
        uint64_t *swapped = keys;
        keys = room;
        room = swapped;
    }
    return keys;
}

EXPORTED void avl_drop_repeats(const avl_repeats *of, int64_t *left, int64_t count, int64_t most,
                               int64_t drop)
{
    memset(of->states, GONE, (size_t)of->tokens);
    while (count > most) {
        const int64_t evens = (count + 1) / 2, odds = count / 2;
        int64_t *even = of->order, *odd = of->order + evens;
        for (int64_t i = 0; i < count; i++) {
            (i % 2 ? odd : even)[i / 2] = left[i];
            of->states[left[i]] = i % 2 ? ODD : EVEN;
        }
        for (int64_t i = 0; i < evens; i++)
            of->keys[i] = key_of(likeness_to(of, even[i], odd, odds), even[i]);
        const uint64_t *keys = sorted(of->keys, of->keys + of->tokens, evens);
        int64_t gone = count - most < drop ? count - most : drop;
        gone = gone < evens ? gone : evens;
        for (int64_t i = 0; i < evens; i++) {
            const int64_t token = (int64_t)(keys[i] & UINT32_MAX);
            if (i < gone)
                of->states[token] = GONE;
            else
                left[i - gone] = token;
        }
        memcpy(left + evens - gone, odd, (size_t)odds * sizeof *odd);
        count -= gone;
    }
}
