// Tokens that are chosen one after the other, each the one that is worth most then, by several
// threads. What is found does not depend on how many there are.
#ifndef AVL_GREEDY_H
#define AVL_GREEDY_H

#include "likeness.h"

enum { AVL_LINE_WORDS = 8 }; // of a processor's cache

// A token, and what it was worth when that was found.
typedef struct avl_runner {
    double worth;
    int64_t token;
} avl_runner;

// What tokens are worth only shrinks as others are chosen, so an old number bounds the new one from
// above: a token whose new one is in front of all others' bounds is the next one.
typedef struct avl_race {
    int64_t tokens, threads;
    double *worth;       // [tokens]
    avl_runner *runners; // [tokens], scratch, as what follows
    int64_t *looked;     // [tokens]
    // [3 + 2 * threads, AVL_LINE_WORDS], zeros. Threads that have begun return where line 1 becomes -1
    // before all have, and do nothing.
    int64_t *state;
} avl_race;

// Tokens that together cover most of some things (policies/embedded/covering.py).
typedef struct avl_cover {
    avl_race race;
    int64_t things;
    const float *covers;   // [tokens, things], how well each token covers each thing
    const float *shares;   // [things], at least 0: what that counts
    const double *weights; // [tokens], at least 0: what a token's gain counts
    float *best;           // [threads, things], zeros
} avl_cover;

// A thread's part of it, which goes on while all others do theirs. All of them write the same to
// `chosen`: `count` tokens, each the one that adds most then, of equal ones the first.
void avl_cover_most(const avl_cover *of, int64_t thread, int64_t count, int64_t *chosen);

// Tokens whose kernel has the greatest determinant (policies/embedded/cdpruner.py): of the kernel
// (1 - weight) S + weight r S r of cosines S and relevance r.
typedef struct avl_spanning {
    avl_race race;
    avl_likeness of; // the tokens, whose panels are there
    int64_t count;
    const double *relevance; // [groups, AVL_GROUP], r
    double weight, smallest; // the least that a token adds to be chosen
    double *adds;            // [groups, AVL_GROUP], what each adds to the determinant
    double *spanned;         // [groups, count, AVL_GROUP], its coordinates along those chosen
    double *known;           // [count * (count - 1) / 2], those of the chosen ones
    double *roots;           // [count], of what they added
    void *units;             // [count, width], their features, brought to length 1
    int64_t *done;           // [groups], zeros: choices that `adds` and `spanned` know of
    int64_t *chosen;         // [count]
} avl_spanning;

// A thread's part, as above. Returns how many tokens are chosen: fewer than `count` where the others
// add less than `smallest`.
int64_t avl_span_most(const avl_spanning *of, int64_t thread);

#endif
