#include "processor.h"

#if defined(__x86_64__)

#include <cpuid.h>

int avl_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// Not every compiler's __builtin_cpu_supports knows it.
int avl_has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return avl_has_avx2() && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

int avl_has_avx512(void)
{
    return avl_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq");
}

int avl_has_vnni(void)
{
    return avl_has_avx512() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("bmi2");
}

#else

int avl_has_avx2(void) { return 0; }
int avl_has_f16c(void) { return 0; }
int avl_has_avx512(void) { return 0; }
int avl_has_vnni(void) { return 0; }

#endif
