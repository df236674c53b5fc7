// Rows of queries, keys and values as heads, queries and keys normed and turned (schema/heads.py).
#ifndef AVL_HEADS_H
#define AVL_HEADS_H

#include <stdint.h>

// Rows [B * S, heads * D] that become heads [B, heads, S, D].
typedef struct avl_heads_of {
    int64_t heads;
    int is_turned;     // else copied
    const float *norm; // [D], or NULL
    const float *rows;
    float *to;
} avl_heads_of;

enum { AVL_SPLIT = 3 }; // queries, keys and values

typedef struct avl_heads {
    int64_t batch, rows, head_dim, turned; // turned: pairs, F
    int is_interleaved;
    float epsilon;
    const float *cos, *sin; // [B, S, F]
    avl_heads_of of[AVL_SPLIT];
} avl_heads;

// One for each level of instructions that heads.c is compiled for: rows [first, end) of B * S.
typedef void avl_split_heads(const avl_heads *all, int64_t first, int64_t end);

extern avl_split_heads avl_heads_base, avl_heads_avx2, avl_heads_avx512;

#endif
