// What choices before the decoder do with many numbers at once.
#include "likeness.h"

#include "choosing.h"
#include "exponent.h"
#include "greedy.h"
#include "row_lanes.h"

#include <math.h>

#ifndef AVL_LEVEL
#define AVL_LEVEL avl_likeness_base
#endif

// A tile has TALL tokens of one panel and BROAD registers of another.
// So many chosen tokens are compared with a group at once: MET.
#if defined(__AVX512F__)
enum { TALL = 8, BROAD = 3, MET = 4 };
#elif defined(__AVX2__)
enum { TALL = 4, BROAD = 3, MET = 1 };
#elif defined(__aarch64__)
enum { TALL = 8, BROAD = 3, MET = 1 };
#else
enum { TALL = 4, BROAD = 2, MET = 1 };
#endif
_Static_assert(AVL_GROUP % TALL == 0 && AVL_PANEL % (BROAD * LANES) == 0, "panels are whole tiles");

enum {
    PIECE = 16,  // features that are put in place at once
    DEEP = 128,  // and that are summed at once: the fewer, the less is rounded away
    SUMS = 4,    // registers of a gain's sum
    SPAN = 512,  // numbers of one in float32
    PEAKS = 128, // parts of a row, of each of which the greatest number is found first
    FINEST = 1 << 12, // bits below this one are not asked for in looking for what many reach
    SOME = 256,       // that are among the first, or so it seems
    TOGETHER = 16,
    WAYS = 4,     // sums of a cosine with a chosen token
    AT_ONCE = 16, // choices that a group is told of
};

typedef double doubles __attribute__((vector_size(LANES * sizeof(float)), aligned(8), may_alias));
typedef double eight __attribute__((vector_size(64), aligned(8), may_alias));

// Where a panel has a feature of one of its tokens.
HELPER int64_t place_of(int64_t width, int64_t i, int64_t token)
{
    return (token / AVL_GROUP * width + i) * AVL_GROUP + token % AVL_GROUP;
}

HELPER int64_t tokens_of(int64_t tokens, int64_t panel)
{
    return least(AVL_PANEL, tokens - panel * AVL_PANEL);
}

HELPER void finish_single(float found[AVL_PANEL][AVL_PANEL], double temperature)
{
    const float inverse = temperature > 0 ? (float)(1 / temperature) : 0;
    for (int64_t r = 0; temperature > 0 && r < AVL_PANEL; r++)
        for (int64_t c = 0; c < AVL_PANEL; c++)
            found[r][c] = avl_exp((found[r][c] - 1) * inverse);
}

HELPER void finish_double(double found[AVL_PANEL][AVL_PANEL], double temperature)
{
    (void)found, (void)temperature;
}

#define NUMBER float
#define REGISTER lanes
#define ACROSS LANES
#define NAMED(x) x##_single
#include "cosines.h"
#undef NUMBER
#undef REGISTER
#undef ACROSS
#undef NAMED
#define NUMBER double
#define REGISTER doubles
#define ACROSS (LANES / 2)
#define NAMED(x) x##_double
#include "cosines.h"

static double gain(const float *row, const float *best, const float *shares, int64_t count)
{
    const lanes zero = {0};
    double totals[LANES] = {0}, total = 0;
    int64_t i = 0;
    while (i + SUMS * LANES <= count) {
        const int64_t end = least(count, i + SPAN);
        lanes sums[SUMS] = {0};
        for (; i + SUMS * LANES <= end; i += SUMS * LANES)
            _Pragma("GCC unroll 4") for (int x = 0; x < SUMS; x++) {
                const int64_t at = i + x * LANES;
                sums[x] += greater(*(const lanes *)(row + at) - *(const lanes *)(best + at), zero) *
                           *(const lanes *)(shares + at);
            }
        const lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int x = 0; x < LANES; x++)
            totals[x] += sum[x];
    }
    for (int x = 0; x < LANES; x++)
        total += totals[x];
    for (; i < count; i++)
        total += row[i] > best[i] ? (row[i] - best[i]) * shares[i] : 0;
    return total;
}

// What at least `known` numbers of a row reach, and not many more; or -inf.
static float reached(const float *row, int64_t count, int32_t known)
{
    float peaks[PEAKS];
    uint32_t order[PEAKS], found = 0;
    if (known > PEAKS || count < PEAKS)
        return -INFINITY;
    memcpy(peaks, row, sizeof peaks);
    for (int64_t begin = PEAKS; begin + PEAKS <= count; begin += PEAKS)
        for (int64_t i = 0; i < PEAKS; i += LANES)
            *(lanes *)(peaks + i) = greater(*(lanes *)(peaks + i), *(const lanes *)(row + begin + i));
    for (int64_t i = 0; i < PEAKS; i++)
        order[i] = avl_ordered(peaks[i]);
    for (uint32_t bit = 1u << 31; bit > FINEST; bit >>= 1) {
        int32_t those = 0;
        for (int64_t i = 0; i < PEAKS; i++)
            those += order[i] >= (found | bit);
        found |= those >= known ? bit : 0;
    }
    const float floor = avl_in_order(found);
    return floor == floor ? floor : -INFINITY;
}

// Writes the `known` of `count` others that a token is most like, in that order.
static void first_of(const float *near, const int32_t *others, int64_t count, int32_t *to,
                     int64_t known)
{
    uint64_t keys[SOME];
    for (int64_t i = 0; i < count; i++)
        keys[i] = avl_key_of(near[others[i]], others[i]);
    for (int64_t i = 0; i < count; i++) {
        int64_t before = 0; // without a branch, which none foresees
        for (int64_t j = 0; j < count; j++)
            before += keys[j] < keys[i];
        if (before < known)
            to[before] = others[i];
    }
}

static void likest(const avl_repeats *of, int64_t token)
{
    const float *near = of->near + token * of->tokens;
    int32_t others[SOME] = {0};
    int32_t *found = of->likest + token * of->known;
    // One more, as the token itself may be among those that reach it.
    float floor = reached(near, of->tokens, (int32_t)of->known + 1);
    int64_t held = 0;
    fetch(near + of->tokens, of->tokens * (int64_t)sizeof *near);
    for (int64_t begin = 0; begin < of->tokens; begin += TOGETHER) {
        const int64_t end = least(of->tokens, begin + TOGETHER);
        int some = 0;
        for (int64_t i = begin; i < end; i++)
            some |= near[i] >= floor;
        for (int64_t i = begin; some && i < end; i++) {
            others[held] = (int32_t)i;
            held += (near[i] >= floor) & (i != token);
        }
        if (held > SOME - TOGETHER) { // what is not above the last of them comes behind it
            first_of(near, others, held, found, of->known);
            memcpy(others, found, (size_t)of->known * sizeof *others);
            held = of->known;
            floor = nextafterf(near[others[held - 1]], INFINITY);
        }
    }
    first_of(near, others, held, found, of->known);
    for (int64_t i = held; i < of->known; i++)
        found[i] = (int32_t)of->tokens;
    for (int64_t i = 0; i < least(held, of->known); i++)
        of->alike[token * of->known + i] = near[found[i]];
}

HELPER void add_choice(const avl_spanning *of, int64_t group, int64_t place,
                       const double near[AVL_GROUP])
{
    const double *known = of->known + place * (place - 1) / 2;
    double *adds = of->adds + group * AVL_GROUP;
    double *own = of->spanned + group * of->count * AVL_GROUP;
    const double *relevance = of->relevance + group * AVL_GROUP;
    const double scale = of->weight * of->relevance[of->chosen[place]], root = of->roots[place];
    for (int half = 0; half < AVL_GROUP; half += 8) {
        eight sums[SUMS] = {0};
        int64_t i = 0;
        for (; i + SUMS <= place; i += SUMS)
            _Pragma("GCC unroll 4") for (int x = 0; x < SUMS; x++)
                sums[x] += known[i + x] * *(const eight *)(own + (i + x) * AVL_GROUP + half);
        for (; i < place; i++)
            sums[0] += known[i] * *(const eight *)(own + i * AVL_GROUP + half);
        const eight kernel = (1 - of->weight + scale * *(const eight *)(relevance + half)) *
                             *(const eight *)(near + half);
        const eight new = (kernel - ((sums[0] + sums[1]) + (sums[2] + sums[3]))) / root;
        *(eight *)(own + place * AVL_GROUP + half) = new;
        *(eight *)(adds + half) -= new * new;
    }
}

static void span(const avl_spanning *of, int64_t group, int64_t until)
{
    double near[AT_ONCE][AVL_GROUP];
    const int64_t size = of->of.width * (of->of.fine ? sizeof(double) : sizeof(float));
    for (int64_t begin = of->done[group]; begin < until; begin += AT_ONCE) {
        const int64_t count = least(AT_ONCE, until - begin);
        const void *units = (const char *)of->units + begin * size;
        (of->of.fine ? meet_all_double : meet_all_single)(&of->of, group, units, count, near);
        for (int64_t i = 0; i < count; i++)
            add_choice(of, group, begin + i, near[i]);
    }
    of->done[group] = until;
}

static void take(const avl_spanning *of, int64_t place)
{
    const int64_t token = of->chosen[place], group = token / AVL_GROUP;
    const double *own = of->spanned + group * of->count * AVL_GROUP + token % AVL_GROUP;
    const int64_t size = of->of.width * (of->of.fine ? sizeof(double) : sizeof(float));
    for (int64_t i = 0; i < place; i++)
        of->known[place * (place - 1) / 2 + i] = own[i * AVL_GROUP];
    of->roots[place] = sqrt(of->adds[token]);
    (of->of.fine ? take_double : take_single)(&of->of, token, (char *)of->units + place * size);
}

const avl_likeness_kernels AVL_LEVEL = {
    {unit_single, compare_single},
    {unit_double, compare_double},
    gain,
    likest,
    span,
    take,
};
