// Attention of prompts whose rows are codes of 8 bits, in whole numbers.
#ifndef AVL_PROMPT_CODES_H
#define AVL_PROMPT_CODES_H

#include "prompt.h"

#include <stddef.h>

// NULL if the compiler did not know VNNI. Whether the processor does, `avl_has_vnni` says.
extern const avl_prompt_tiles *const avl_prompt_codes;

#endif
