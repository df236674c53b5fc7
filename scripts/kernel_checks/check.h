// What the checks of single kernels share.
#ifndef CHECK_H
#define CHECK_H

#include "ort_abi.h"

#include <stdint.h>

// Numbers between -1 and 1, and whole ones from `least` to `most`; the same ones in every run.
float any_number(void);
int64_t any_whole(int64_t least, int64_t most);

// Memory that begins `off` bytes behind a multiple of 64, for numbers or, filled, for results.
float *numbers(int64_t count);
float *results(int64_t count);
void forget(void); // all of it

// Counts results that are farther from what they should be than `allowed`, or are no numbers.
void expect(const char *what, double found, double wanted, double allowed);

void expect_done(const OrtStatus *status); // that nothing failed

void check_attention(void);
void check_choosing(void);
void check_codes(void);
void check_linears(void);
void check_quantized(void);
void check_states(void);

#endif
