// What the processor has, of what kernels are compiled for (build.py).
#ifndef AVL_PROCESSOR_H
#define AVL_PROCESSOR_H

// AVL_CPU_LEVEL in the environment, one of the names below, keeps all instructions away that come
// after it: base, avx2 (with FMA and F16C), avx-vnni, avx512, vnni, amx; on Arm base (with NEON),
// dotprod, i8mm. It counts for sessions opened from then on.

int avl_has_avx2(void);     // with FMA
int avl_has_f16c(void);     // AVX2 with it
int avl_has_avx_vnni(void); // AVX2 with VNNI of its own
int avl_has_avx512(void);   // with what LEVELS asks for beside it
int avl_has_vnni(void);     // AVX-512 with VNNI

// VNNI and AMX for bf16, and that the system lets this process use it, which is asked once; 0 where
// AVL_AMX is "off" in the environment.
int avl_has_amx(void);

int avl_has_dotprod(void); // Arm's products of four bytes
int avl_has_i8mm(void);    // and those of matrices of bytes

#endif
