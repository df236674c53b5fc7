// Choices among many tokens of a picture, before the decoder: what the policies do in NumPy where
// there is no library, choice for choice.
#ifndef AVL_CHOOSING_H
#define AVL_CHOOSING_H

#include "likeness.h"

// The first half of what `likeness.h` does, and the second, for panels [first, end).
void avl_unit_panels(const avl_likeness *of, int64_t first, int64_t end);
void avl_compare_panels(const avl_likeness *of, int64_t first, int64_t end);

// Tokens that repeat each other (policies/embedded/vispruner.py).
typedef struct avl_repeats {
    int64_t tokens, known;
    const float *near; // [tokens, tokens], how alike they are
    int32_t *likest;   // [tokens, known], of each the others that are most like it, the likest first
    float *alike;      // [tokens, known], and how much they are
    uint64_t *keys;    // [2, tokens], scratch of the second function, as what follows
    int64_t *order;    // [tokens]
    uint8_t *states;   // [tokens]
} avl_repeats;

// What tokens are most like tokens [first, end), in any threads at once; `known` are fewer than all.
void avl_find_likest(const avl_repeats *of, int64_t first, int64_t end);

// Afterwards: of `count` tokens `left`, which are in order, `most` stay, and become the first ones. In
// each round every other token is compared with those between, and up to `drop` go that are most
// like one of these, of equally alike ones the first; the rest of the former are put in that order,
// in front of the latter.
void avl_drop_repeats(const avl_repeats *of, int64_t *left, int64_t count, int64_t most,
                      int64_t drop);

#endif
