// How alike a picture's tokens are: what policies choose by before the decoder.
#ifndef AVL_LIKENESS_H
#define AVL_LIKENESS_H

#include <stdint.h>

// Tokens that lie together, and those whose features do, one after the other; behind the last token
// of the last panel there are zeros.
enum { AVL_PANEL = 48, AVL_GROUP = 16 };

// Cosines of tokens with each other, or with others.
typedef struct avl_likeness {
    int64_t fine; // whether all numbers are float64, or else float32
    int64_t tokens, width;
    const void *features; // [tokens, width]
    void *panels;         // [panels, groups, width, AVL_GROUP], of features brought to length 1
    int64_t others;
    const void *beside;   // panels of so many others; NULL: none
    int64_t stride;       // of `out`, from token to token
    void *out;            // [tokens, stride], of which the first `others` are written, or `tokens`
    double temperature;   // above 0, in float32: e ** ((cosine - 1) / temperature) in their place
    // [panels, tokens] without `beside`: of each token the greatest of those with a panel's others, or
    // NULL.
    void *greatest;
} avl_likeness;

// Panels go in any order and in any threads at once, all of them through one function and then
// through the other. Of tokens that are equal, so are all results.
typedef struct avl_cosines {
    void (*unit)(const avl_likeness *of, int64_t panel);
    // With the others, or else with itself and with those before it.
    void (*compare)(const avl_likeness *of, int64_t panel);
} avl_cosines;

struct avl_repeats;
struct avl_spanning;

// One for each level of instructions.
typedef struct avl_likeness_kernels {
    avl_cosines cosines, fine;
    // The sum over `count` of what `row` is above `best`, times `shares`, in an order that depends
    // on `count` alone.
    double (*gain)(const float *row, const float *best, const float *shares, int64_t count);
    void (*likest)(const struct avl_repeats *of, int64_t token);                  // choosing.h
    // Has a group know of the first choices, and others of the choice at a place (greedy.h).
    void (*span)(const struct avl_spanning *of, int64_t group, int64_t until);
    void (*take)(const struct avl_spanning *of, int64_t place);
} avl_likeness_kernels;

extern const avl_likeness_kernels avl_likeness_base, avl_likeness_avx2, avl_likeness_avx512;

#endif
