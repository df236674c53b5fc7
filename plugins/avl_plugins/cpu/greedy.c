#include "greedy.h"

#include "ahead.h"
#include "levels.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

enum {
    BRANCHES = 4,       // of a heap
    PATIENCE = 1 << 12, // times that a thread looks for others before it lets them run
};

// Lines of `state`.
enum { ARRIVED, TURN, FLOORS, ENTRIES };

static _Atomic int64_t *line(const avl_race *of, int64_t number)
{
    return (_Atomic int64_t *)(of->state + number * AVL_LINE_WORDS);
}

// Waits for all threads. Returns whether they came: `turn` is below 0 where one of them will not.
static int meet(const avl_race *of)
{
    _Atomic int64_t *arrived = line(of, ARRIVED), *turn = line(of, TURN);
    const int64_t before = atomic_load(turn);
    if (before < 0)
        return 0;
    if (atomic_fetch_add(arrived, 1) + 1 == of->threads) {
        atomic_store(arrived, 0);
        atomic_store(turn, before + 1);
        return 1;
    }
    int64_t now = before;
    for (int64_t looks = 0; now == before; looks++) {
        if (looks > PATIENCE)
            sched_yield();
        now = atomic_load_explicit(turn, memory_order_acquire);
    }
    return now > before;
}

// Of numbers from 0 on the bits are in the same order.
static int64_t bits_of(double number)
{
    int64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static double number_of(int64_t bits)
{
    double number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static void raise_floor(_Atomic int64_t *floor, double to)
{
    int64_t bits = bits_of(to), before = atomic_load(floor);
    while (to > 0 && bits > before && !atomic_compare_exchange_weak(floor, &before, bits))
        ;
}

// A thread's tokens with what each is worth: the first is worth most, of equal ones the lowest. Those at
// BRANCHES places from BRANCHES * i + 1 on are none of them before that at i.
typedef struct {
    const avl_race *race;
    const avl_likeness_kernels *by;
    int64_t thread;
    avl_runner *runners;
    int64_t count;
} heap;

static int is_before(avl_runner a, avl_runner b)
{
    return (a.worth > b.worth) | ((a.worth == b.worth) & (a.token < b.token));
}

// The place of the first of those below a place, or `count` if there is none.
static int64_t first_below(const heap *of, int64_t at)
{
    const int64_t begin = BRANCHES * at + 1, end = least(begin + BRANCHES, of->count);
    int64_t first = least(begin, of->count);
    for (int64_t i = begin + 1; i < end; i++)
        first = is_before(of->runners[i], of->runners[first]) ? i : first;
    return first;
}

// Moves the token at `at` to where it belongs below.
static void sink(const heap *of, int64_t at)
{
    const avl_runner runner = of->runners[at];
    for (int64_t below; (below = first_below(of, at)) < of->count; at = below) {
        if (!is_before(of->runners[below], runner))
            break;
        of->runners[at] = of->runners[below];
    }
    of->runners[at] = runner;
}

static int64_t begin_of(const avl_race *of, int64_t thread)
{
    const int64_t groups = (of->tokens + AVL_GROUP - 1) / AVL_GROUP;
    return least(of->tokens, groups * thread / of->threads * AVL_GROUP);
}

static heap heap_of(const avl_race *of, const avl_likeness_kernels *by, int64_t thread)
{
    const int64_t begin = begin_of(of, thread);
    heap made = {of, by, thread, of->runners + begin, begin_of(of, thread + 1) - begin};
    for (int64_t i = 0; i < made.count; i++) {
        made.runners[i] = (avl_runner){of->worth[begin + i], begin + i};
        of->looked[begin + i] = 0; // after so many choices
    }
    for (int64_t at = (made.count + BRANCHES - 2) / BRANCHES; at--;)
        sink(&made, at);
    return made;
}

typedef double worth_of(const void *of, const heap *own, int64_t token, int64_t place);

// The next token, the same in all threads. A thread does not look at those of its own that others'
// are already in front of.
static int64_t next(heap *own, int64_t place, worth_of *look, const void *of)
{
    const avl_race *race = own->race;
    _Atomic int64_t *floors = line(race, FLOORS), *entries = line(race, ENTRIES);
    _Atomic int64_t *floor = floors + place % 2;
    entries += place % 2 * race->threads * AVL_LINE_WORDS;
    int64_t token = -1;
    while (own->count && race->looked[token = own->runners[0].token] != place) {
        if (race->worth[token] < number_of(atomic_load_explicit(floor, memory_order_relaxed)))
            break;
        race->worth[token] = own->runners[0].worth = look(of, own, token, place);
        race->looked[token] = place;
        raise_floor(floor, race->worth[token]);
        sink(own, 0);
    }
    const int runs = own->count && race->looked[token] == place;
    atomic_store(entries + own->thread * AVL_LINE_WORDS, runs ? token : -1);
    atomic_store(entries + own->thread * AVL_LINE_WORDS + 1, runs ? bits_of(race->worth[token]) : 0);
    atomic_store(floors + (place + 1) % 2, 0); // which all have read
    meet(race);
    int64_t first = -1;
    double most = 0; // of parts in the order of tokens, so that the first of equal ones is the lowest
    for (int64_t thread = 0; thread < race->threads; thread++) {
        const int64_t entry = atomic_load(entries + thread * AVL_LINE_WORDS);
        const double worth = number_of(atomic_load(entries + thread * AVL_LINE_WORDS + 1));
        if (entry >= 0 && (first < 0 || worth > most)) {
            first = entry;
            most = worth;
        }
    }
    if (runs && first == token) {
        own->runners[0] = own->runners[--own->count];
        if (own->count)
            sink(own, 0);
    }
    return first;
}

static double gain_of(const avl_cover *of, const avl_likeness_kernels *by, int64_t thread,
                      int64_t token)
{
    const float *covers = of->covers + token * of->things, *best = of->best + thread * of->things;
    return of->weights[token] * by->gain(covers, best, of->shares, of->things);
}

static void fetch_row(const avl_cover *of, const heap *own, int64_t at)
{
    if (at < own->count)
        fetch(of->covers + own->runners[at].token * of->things,
              of->things * (int64_t)sizeof *of->covers);
}

static double look_at(const void *given, const heap *own, int64_t token, int64_t place)
{
    const avl_cover *of = given;
    (void)place;
    for (int64_t i = 1; i <= BRANCHES; i++) // one of which may well be looked at next
        fetch_row(of, own, i);
    return gain_of(of, own->by, own->thread, token);
}

EXPORTED void avl_cover_most(const avl_cover *of, int64_t thread, int64_t count, int64_t *chosen)
{
    const avl_likeness_kernels *by = avl_best_likeness();
    float *best = of->best + thread * of->things;
    const int64_t end = begin_of(&of->race, thread + 1);
    if (!meet(&of->race))
        return;
    for (int64_t token = begin_of(&of->race, thread); token < end; token++)
        of->race.worth[token] = gain_of(of, by, thread, token);
    heap own = heap_of(&of->race, by, thread);
    for (int64_t place = 0; place < count; place++) {
        const int64_t token = next(&own, place, look_at, of);
        if (!thread)
            chosen[place] = token;
        const float *covers = of->covers + token * of->things;
        for (int64_t i = 0; i < of->things; i++)
            best[i] = covers[i] > best[i] ? covers[i] : best[i];
    }
}

static double span_of(const void *given, const heap *own, int64_t token, int64_t place)
{
    const avl_spanning *of = given;
    if (of->done[token / AVL_GROUP] < place)
        own->by->span(of, token / AVL_GROUP, place);
    return of->adds[token];
}

EXPORTED int64_t avl_span_most(const avl_spanning *of, int64_t thread)
{
    const avl_race *race = &of->race;
    if (!meet(race))
        return 0;
    heap own = heap_of(race, avl_best_likeness(), thread);
    for (int64_t place = 0; place < of->count; place++) {
        const int64_t token = next(&own, place, span_of, of);
        if (race->worth[token] < of->smallest)
            return place;
        if (begin_of(race, thread) <= token && token < begin_of(race, thread + 1)) {
            of->chosen[place] = token;
            own.by->take(of, place);
        }
        meet(race);
    }
    return of->count;
}
