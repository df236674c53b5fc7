// Choices among many tokens of a picture, before the decoder: what the policies do in NumPy where
// there is no library, choice for choice.
#ifndef AVL_CHOOSING_H
#define AVL_CHOOSING_H

#include "likeness.h"

#include <string.h>

// The first half of what `likeness.h` does, and the second, for panels [first, end).
void avl_unit_panels(const avl_likeness *of, int64_t first, int64_t end);
void avl_compare_panels(const avl_likeness *of, int64_t first, int64_t end);

enum { AVL_LEAST_KNOWN = 8 };

// Tokens that repeat each other (policies/embedded/vispruner.py).
typedef struct avl_repeats {
    int64_t tokens, known; // the latter from AVL_LEAST_KNOWN on, and not above 240
    const float *near;     // [tokens, tokens], how alike they are
    // [tokens, known], of each the others that are most like it, the likest first, and then `tokens`.
    int32_t *likest;
    float *alike;    // [tokens, known], and how much they are
    uint64_t *keys;  // [2, tokens], scratch of the second function, as what follows
    int64_t *order;  // [tokens]
    uint8_t *states; // [tokens + 1]
} avl_repeats;

// What tokens are most like tokens [first, end), in any threads at once.
void avl_find_likest(const avl_repeats *of, int64_t first, int64_t end);

// Afterwards: of `count` tokens `left`, which are in order, `most` stay, and become the first ones. In
// each round every other token is compared with those between, and up to `drop` go that are most
// like one of these, of equally alike ones the first; the rest of the former are put in that order,
// in front of the latter.
void avl_drop_repeats(const avl_repeats *of, int64_t *left, int64_t count, int64_t most,
                      int64_t drop);

// Whole numbers that are in the order of numbers, of both zeros the same, and back.
static inline uint32_t avl_ordered(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits = bits == 1u << 31 ? 0 : bits;
    return bits ^ ((bits >> 31) * (UINT32_MAX >> 1) | 1u << 31);
}

static inline float avl_in_order(uint32_t ordered)
{
    const uint32_t bits = ordered ^ (ordered >> 31 ? 1u << 31 : ~0u);
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

// What is the lower, the more alike: and of equally alike tokens the lower for the first.
static inline uint64_t avl_key_of(float alike, int64_t token)
{
    return (uint64_t)~avl_ordered(alike) << 32 | (uint64_t)token;
}

#endif
