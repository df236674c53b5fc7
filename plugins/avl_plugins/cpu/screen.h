// The largest products of a linear layer without reading all of its weights: a copy in 8 bits gives
// each product to within a known distance, and only those that may be the largest are computed.
#ifndef AVL_SCREEN_H
#define AVL_SCREEN_H

#include "linear.h"

// Lengths of x for which screens are right.
#define AVL_LEAST_LENGTH 1e-6
#define AVL_MOST_LENGTH 1e15

typedef struct avl_screen {
    avl_stored codes; // AVL_BYTE
    float *scales;    // [outputs] of a code
    float *distances; // [outputs] how far a product may lie from the codes', for an x of length 1
} avl_screen;

// Rows that are multiplied.
typedef struct avl_screened {
    const float *x; // [rows, inputs]
    int64_t rows;
    float *y;             // [rows, outputs]
    const float *lengths; // [rows] of x, rounded up
} avl_screened;

// One for each level of instructions. Each function does outputs `first` to before `end`.
typedef struct avl_screening {
    avl_multiply_stored *multiply;
    // Fills the screen of a weight, whose memory is there.
    void (*make)(const avl_stored *weight, const avl_screen *screen, int64_t first, int64_t end);
    // Fills y with what the codes give; `floors` [rows] become what the largest is at least.
    void (*estimate)(const avl_screen *screen, const avl_screened *of, int64_t first, int64_t end,
                     float *floors);
    // Replaces what may reach the floors by the weight's own products, the rest by -inf.
    void (*settle)(const avl_stored *weight, const avl_screen *screen, const avl_screened *of,
                   int64_t first, int64_t end, const float *floors);
} avl_screening;

extern const avl_screening avl_screen_avx2, avl_screen_avx512, avl_screen_neon;

#endif
