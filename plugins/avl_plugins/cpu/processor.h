// What the processor has, of what kernels are compiled for (build.py).
#ifndef AVL_PROCESSOR_H
#define AVL_PROCESSOR_H

int avl_has_avx2(void);   // with FMA
int avl_has_f16c(void);   // AVX2 with it
int avl_has_avx512(void); // with what LEVELS asks for beside it
int avl_has_vnni(void);   // AVX-512 with what QUANTIZED_LEVEL asks for beside it

// VNNI and AMX for bf16, and that the system lets this process use it, which is asked once; 0 where
// AVL_AMX is "off" in the environment.
int avl_has_amx(void);

#endif
