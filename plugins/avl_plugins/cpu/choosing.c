#include "choosing.h"

#include "ahead.h"
#include "levels.h"

#include <math.h>
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

enum {
    LOOKED = AVL_LEAST_KNOWN,
    SOON = 8,     // tokens later a list is looked at
    RENEWED = 16, // and so many of one that is made anew
};

EXPORTED void avl_find_likest(const avl_repeats *of, int64_t first, int64_t end)
{
    for (; first < end; first++)
        avl_best_likeness()->likest(of, first);
}

// Puts a token where it belongs into a list of `held` ones, the likest first and of equally alike ones
// the first, which has room for `known`. Returns how many there are then.
static int64_t keep_likest(int32_t *likest, float *alike, int64_t held, int64_t known,
                           int32_t token, float own)
{
    if (held == known && !(own > alike[held - 1]))
        return held;
    int64_t at = held < known ? held++ : held - 1;
    for (; at && own > alike[at - 1]; at--) {
        likest[at] = likest[at - 1];
        alike[at] = alike[at - 1];
    }
    likest[at] = token;
    alike[at] = own;
    return held;
}

// Where its list has no odd one among the first: the greatest likeness of a token to one of `count`
// tokens that is odd. The list goes on without those that are gone, and is made anew where none of
// it is odd.
static float look_again(const avl_repeats *of, int64_t token, const int64_t *left, int64_t count)
{
    const float *near = of->near + token * of->tokens;
    int32_t *likest = of->likest + token * of->known;
    float *alike = of->alike + token * of->known;
    int64_t held = 0;
    for (int64_t i = 0; i < of->known; i++)
        if (of->states[likest[i]] != GONE) {
            likest[held] = likest[i];
            alike[held++] = alike[i];
        }
    for (int64_t i = held; i < of->known; i++)
        likest[i] = (int32_t)of->tokens;
    for (int64_t i = 0; i < held; i++)
        if (of->states[likest[i]] == ODD)
            return alike[i];
    const int64_t room = least(RENEWED, of->known);
    held = 0;
    fetch(near, of->tokens * (int64_t)sizeof *near);
    for (int64_t i = 0; i < count; i++)
        if (left[i] != token)
            held = keep_likest(likest, alike, held, room, (int32_t)left[i], near[left[i]]);
    for (int64_t i = 0; i < held; i++)
        if (of->states[likest[i]] == ODD)
            return alike[i];
    float found = -INFINITY;
    for (int64_t i = 0; i < count; i++)
        if (of->states[left[i]] == ODD && near[left[i]] > found)
            found = near[left[i]];
    return found;
}

// The greatest likeness of a token to one of `count` that is odd.
static float likeness_to(const avl_repeats *of, int64_t token, const int64_t *left, int64_t count)
{
    const int32_t *likest = of->likest + token * of->known;
    uint32_t odd = 0; // whatever they are, without a branch, which none foresees
    for (int i = 0; i < LOOKED; i++)
        odd |= (uint32_t)(of->states[likest[i]] == ODD) << i;
    return odd ? of->alike[token * of->known + __builtin_ctz(odd)]
               : look_again(of, token, left, count);
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
    memset(of->states, GONE, (size_t)of->tokens + 1);
    while (count > most) {
        const int64_t evens = (count + 1) / 2, odds = count / 2;
        int64_t *even = of->order, *odd = of->order + evens;
        for (int64_t i = 0; i < count; i++) {
            (i % 2 ? odd : even)[i / 2] = left[i];
            of->states[left[i]] = i % 2 ? ODD : EVEN;
        }
        for (int64_t i = 0; i < evens; i++) {
            const int64_t next = even[least(i + SOON, evens - 1)] * of->known;
            __builtin_prefetch(of->likest + next);
            __builtin_prefetch(of->alike + next);
            of->keys[i] = avl_key_of(likeness_to(of, even[i], left, count), even[i]);
        }
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
