// Attention of encoders in whole numbers of 16 bits, where there is AVX-512 VNNI and no AMX.
#ifndef AVL_PROMPT_WORDS_H
#define AVL_PROMPT_WORDS_H

#include "prompt.h"

#include <stddef.h>

// NULL if the compiler did not know VNNI. Whether the processor does, `avl_has_vnni` says.
extern const avl_prompt_tiles *const avl_prompt_words;

#endif
