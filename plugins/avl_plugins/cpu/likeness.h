// How alike a picture's tokens are, in float32: what policies choose by before the decoder.
#ifndef AVL_LIKENESS_H
#define AVL_LIKENESS_H

#include <stdint.h>

enum { AVL_PANEL = 48 }; // tokens that lie together; behind the last panel's there are zeros

// Cosines of tokens with each other, or e ** ((cosine - 1) / temperature) where that is above 0.
typedef struct avl_likeness {
    int64_t tokens, width, stride; // the last of `out`, from token to token
    const float *features;         // [tokens, width]
    float *panels;                 // [panels, width, AVL_PANEL], of features brought to length 1
    float *out;                    // [tokens, stride], of which the first `tokens` are written
    float temperature;
} avl_likeness;

// One for each level of instructions. Panels go in any order and in any threads at once, all of them
// through one function and then through the other. Of tokens that are equal, so are all results.
typedef struct avl_likeness_kernels {
    void (*unit)(const avl_likeness *of, int64_t panel);
    void (*compare)(const avl_likeness *of, int64_t panel); // with itself, and with those before it
    // The sum over `count` of what `row` is above `best`, in an order that depends on `count` alone.
    double (*gain)(const float *row, const float *best, int64_t count);
    void (*scale)(float *row, const float *by, int64_t count);
} avl_likeness_kernels;

extern const avl_likeness_kernels avl_likeness_base, avl_likeness_avx2, avl_likeness_avx512;

#endif
