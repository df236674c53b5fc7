// Runs every kernel beside float64 and tells what this processor has; fails if results differ.
#include "check.h"

#include "ort_op.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_BLOCKS = 256, SHOWN = 10 };

static uint64_t state = 88172645463325252u;
static void *blocks[MOST_BLOCKS];
static int64_t taken, compared, differ;

static uint64_t next(void) // xorshift64
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

float any_number(void) { return (float)(next() >> 40) / (1 << 23) - 1.0f; }

int64_t any_whole(int64_t least, int64_t most)
{
    return least + (int64_t)(next() % (uint64_t)(most - least + 1));
}

// Four bytes off, as no kernel may count on more.
static float *memory(int64_t count)
{
    char *block = aligned_alloc(64, ((size_t)count * sizeof(float) + 131) / 64 * 64);
    if (!block || taken == MOST_BLOCKS)
        abort();
    blocks[taken++] = block;
    return (float *)(block + sizeof(float));
}

float *numbers(int64_t count)
{
    float *made = memory(count);
    for (int64_t i = 0; i < count; i++)
        made[i] = any_number();
    return made;
}

float *results(int64_t count)
{
    float *made = memory(count);
    for (int64_t i = 0; i < count; i++)
        made[i] = NAN;
    return made;
}

void forget(void)
{
    while (taken)
        free(blocks[--taken]);
}

void expect(const char *what, double found, double wanted, double allowed)
{
    compared++;
    if (fabs(found - wanted) <= allowed)
        return;
    if (differ++ < SHOWN)
        printf("%s: expected %.9g, found %.9g\n", what, wanted, found);
}

void expect_done(const OrtStatus *status) { expect("status", status == NULL, 1, 0); }

// In place of ONNX Runtime's threads: the last task is the first.
static OrtStatus *for_all(const OrtKernelContext *context, void (*task)(void *, size_t),
                          size_t count, size_t batches, void *shared)
{
    (void)context, (void)batches;
    while (count--)
        task(shared, count);
    return NULL;
}

const char *avl_instructions(void); // of ort_ops.c

int main(void)
{
    static OrtApi threads = {.KernelContext_ParallelFor = for_all};
    avl_api = &threads;
    check_attention();
    check_choosing();
    check_codes();
    check_linears();
    check_quantized();
    check_states();
    printf("%s: %lld results, %lld differ\n", avl_instructions(), (long long)compared,
           (long long)differ);
    return differ || !compared;
}
