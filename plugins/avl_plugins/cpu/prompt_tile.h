// A few query rows and a block of packed keys, in registers: what prompt.c is made of.
#ifndef AVL_PROMPT_TILE_H
#define AVL_PROMPT_TILE_H

#include "exponent.h"
#include "prompt_places.h"
#include "row_lanes.h"

#include <float.h>
#include <string.h>

// Keys of a block; rows of a tile, whose sums are ROWS * WIDE registers, and a multiple of four; tiles
// of a task.
enum { KEYS = 64, ROWS = 6, EVEN = 8, TILES = AVL_PROMPT_BLOCK / ROWS + 1 };

typedef float quad __attribute__((vector_size(4 * sizeof(float)), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int quad_places __attribute__((vector_size(4 * sizeof(int))));
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (quad_places){__VA_ARGS__})
#endif

// Into loops, so that sizes are known there and sums stay in registers.
#define EACH_ROW(r) _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++)
#define EACH_WIDE(x, count) _Pragma("GCC unroll 4") for (int x = 0; x < (count); x++)

// Query rows of one part that are computed together; behind `count` of them is the last one again.
typedef struct {
    const float *q[ROWS];
    float *out[ROWS];
    int64_t row[ROWS], new_row[ROWS]; // among the part's query rows, and among new rows
    float top[EVEN], sum[EVEN]; // a score that is about the greatest, and sums of weights relative to it
    int count;
} tile;

// [keys, d] -> [d, KEYS], with zeros behind the keys.
HELPER void pack(const float *restrict keys, int64_t count, int64_t d, float *restrict to)
{
    if (count < KEYS)
        memset(to, 0, (size_t)(d * KEYS) * sizeof(float));
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const float *from = keys + j * d;
        int64_t i = 0;
        for (; i + 4 <= d; i += 4) {
            quad a = *(const quad *)(from + i), b = *(const quad *)(from + d + i);
            quad c = *(const quad *)(from + 2 * d + i), e = *(const quad *)(from + 3 * d + i);
            quad ab = SHUFFLED(a, b, 0, 4, 1, 5), ce = SHUFFLED(c, e, 0, 4, 1, 5);
            quad high_ab = SHUFFLED(a, b, 2, 6, 3, 7), high_ce = SHUFFLED(c, e, 2, 6, 3, 7);
            float *at = to + i * KEYS + j;
            *(quad *)at = SHUFFLED(ab, ce, 0, 1, 4, 5);
            *(quad *)(at + KEYS) = SHUFFLED(ab, ce, 2, 3, 6, 7);
            *(quad *)(at + 2 * KEYS) = SHUFFLED(high_ab, high_ce, 0, 1, 4, 5);
            *(quad *)(at + 3 * KEYS) = SHUFFLED(high_ab, high_ce, 2, 3, 6, 7);
        }
        for (; i < d; i++)
            for (int64_t k = 0; k < 4; k++)
                to[i * KEYS + j + k] = from[k * d + i];
    }
    for (; j < count; j++)
        for (int64_t i = 0; i < d; i++)
            to[i * KEYS + j] = keys[j * d + i];
}

// scores[r, j] = scale * q[r] . key j, for the first `count` keys or a few more; as powers of two,
// which are cheaper to take.
HELPER void score(const tile *of, const float *restrict packed, int64_t d, int64_t count,
                  float scale, float scores[ROWS][KEYS])
{
    const float in_twos = scale * AVL_LOG2_E;
    for (int64_t j = 0; j < count; j += WIDE * LANES) {
        lanes sum[ROWS][WIDE] = {0};
        for (int64_t i = 0; i < d; i++) {
            lanes key[WIDE];
            EACH_WIDE(x, WIDE) key[x] = *(const lanes *)(packed + i * KEYS + j + x * LANES);
            EACH_ROW(r) EACH_WIDE(x, WIDE) sum[r][x] += of->q[r][i] * key[x];
        }
        EACH_ROW(r) EACH_WIDE(x, WIDE) *(lanes *)(scores[r] + j + x * LANES) = in_twos * sum[r][x];
    }
}

// Adds a row to a tile: new row `new_row` of the group's head `head`.
HELPER void add_row(const avl_prompt *prompt, tile *to, int64_t part, float *out, int64_t new_row,
                    int64_t head)
{
    const avl_step *step = prompt->step;
    const int64_t g = prompt->group, at = place_of(step, head, new_row);
    to->row[to->count] = new_row * g + head;
    to->new_row[to->count] = new_row;
    to->q[to->count] = step->q + start_of(step, part, g) + at;
    to->out[to->count++] = out + at;
}

HELPER void repeat_last_row(tile *to)
{
    const int last = to->count - 1;
    for (int r = to->count; r < ROWS; r++) {
        to->q[r] = to->q[last];
        to->out[r] = to->out[last];
        to->new_row[r] = to->new_row[last];
    }
}

// Query rows [first, end) of a part, at most a task's, in tiles; `out` is the part's. Returns how
// many tiles there are.
HELPER int64_t tiles_at(const avl_prompt *prompt, int64_t part, float *out, int64_t first,
                        int64_t end, tile tiles[TILES])
{
    int64_t made = 0, new_row = first / prompt->group, head = first % prompt->group;
    for (int64_t row = first; row < end; made++) {
        tile *to = tiles + made;
        to->count = 0;
        for (; row < end && to->count < ROWS; row++) {
            add_row(prompt, to, part, out, new_row, head);
            if (++head == prompt->group)
                head = 0, new_row++;
        }
        repeat_last_row(to);
        for (int r = 0; r < EVEN; r++) {
            to->top[r] = -FLT_MAX;
            to->sum[r] = 0.0f;
        }
    }
    return made;
}

#endif
