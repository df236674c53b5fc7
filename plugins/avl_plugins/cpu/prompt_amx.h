// Attention of a prompt on the matrix units of Intel's AMX: queries, keys, values and weights are
// rounded to bf16, sums and the softmax are in float32.
#ifndef AVL_PROMPT_AMX_H
#define AVL_PROMPT_AMX_H

#include "prompt.h"

#include <stddef.h>

// NULL if the compiler had no AMX. Whether the processor has, `avl_has_amx` says.
extern const avl_prompt_tiles *const avl_prompt_amx;

#endif
