// Which of the levels that kernels are compiled for is taken here: the best that the processor has.
#ifndef AVL_LEVELS_H
#define AVL_LEVELS_H

#include "coded.h"
#include "convolve.h"
#include "delta.h"
#include "epilogue.h"
#include "few.h"
#include "heads.h"
#include "likeness.h"
#include "norm.h"
#include "prompt_amx.h"
#include "prompt_codes.h"
#include "prompt_words.h"
#include "quantized.h"
#include "screen.h"
#include "stacked.h"

const avl_step_kernels *avl_best_step(void);
const avl_few_kernels *avl_best_few(void);
const avl_prompt_kernels *avl_best_prompt(void);
const avl_code_kernels *avl_best_codes(void);
const avl_prompt_tiles *avl_best_tiles(void); // NULL where there are none
const avl_prompt_tiles *avl_best_mutual_tiles(void); // of encoders
const avl_prompt_tiles *avl_best_code_tiles(void); // of rows in codes of 8 bits

// Kernels of linears with stored weights; NULL where there are none, as ONNX Runtime computes the
// ops' bodies then.
const avl_screening *avl_best_linears(void);
const avl_stacked_kernels *avl_best_stacked(void);

// The same for quantized weights.
const avl_quantized_kernels *avl_best_quantized(void);
const avl_coded_kernels *avl_best_coded(void);

// Of layers with a state.
avl_convolve *avl_best_convolve(void);
const avl_delta_kernels *avl_best_delta(void);

// Between linears and attention.
avl_split_heads *avl_best_heads(void);

// Between a decoder's parts.
avl_add_norm *avl_best_add_norm(void);

// Of choices before the decoder.
const avl_likeness_kernels *avl_best_likeness(void);

// What follows a linear.
const avl_epilogues *avl_best_epilogues(void);

#endif
