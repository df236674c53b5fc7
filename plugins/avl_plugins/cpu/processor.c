#include "processor.h"

#include <stdlib.h>
#include <string.h>

enum { BASE, AVX2, AVX_VNNI, AVX512, VNNI, AMX }; // in the order in which levels shut others out
enum { DOTPROD = BASE + 1, I8MM };

#if defined(__x86_64__)
static const char *const LEVELS[] = {"base", "avx2", "avx-vnni", "avx512", "vnni", "amx"};
#else
static const char *const LEVELS[] = {"base", "dotprod", "i8mm"};
#endif

// Whether the environment lets kernels take a level. Of names, its reader is the host.
static int is_allowed(int level)
{
    const char *most = getenv("AVL_CPU_LEVEL");
    for (int i = 0; most && i < level; i++)
        if (!strcmp(most, LEVELS[i]))
            return 0;
    return 1;
}

#if defined(__x86_64__)

#include <cpuid.h>

int avl_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && is_allowed(AVX2);
}

// Not every compiler's __builtin_cpu_supports knows it.
int avl_has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return avl_has_avx2() && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

int avl_has_avx_vnni(void)
{
    unsigned eax, ebx, ecx, edx;
    return avl_has_f16c() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4) &&
           is_allowed(AVX_VNNI);
}

int avl_has_avx512(void)
{
    return avl_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && is_allowed(AVX512);
}

int avl_has_vnni(void)
{
    return avl_has_avx512() && __builtin_cpu_supports("avx512vnni") && is_allowed(VNNI);
}

#if defined(__linux__)

#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 }; // Linux, asm/prctl.h

// Before it is allowed, tiles can be configured, but their first use ends the process.
static int ask_for_amx(void)
{
    unsigned eax, ebx, ecx, edx;
    const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25; // bf16, tiles, and whole numbers
    const unsigned avx512_bf16 = 1u << 5;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & amx) == amx &&
           __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avx512_bf16) &&
           !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

int avl_has_amx(void)
{
    enum { UNKNOWN, NO, YES };
    static atomic_int known; // threads that ask at once get the same answer
    const char *value = getenv("AVL_AMX");
    if ((value && !strcmp(value, "off")) || !avl_has_vnni() || !is_allowed(AMX))
        return 0;
    if (known == UNKNOWN)
        known = ask_for_amx() ? YES : NO;
    return known == YES;
}

#else

int avl_has_amx(void) { return 0; }

#endif

#else

int avl_has_avx2(void) { return 0; }
int avl_has_f16c(void) { return 0; }
int avl_has_avx_vnni(void) { return 0; }
int avl_has_avx512(void) { return 0; }
int avl_has_vnni(void) { return 0; }
int avl_has_amx(void) { return 0; }

#endif

#if defined(__aarch64__)

#if defined(__linux__)

#include <sys/auxv.h>

static int can_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
static int can_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }

#else // what every processor has that the compiler makes programs for

#if defined(__ARM_FEATURE_DOTPROD)
static int can_dotprod(void) { return 1; }
#else
static int can_dotprod(void) { return 0; }
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
static int can_i8mm(void) { return 1; }
#else
static int can_i8mm(void) { return 0; }
#endif

#endif

int avl_has_dotprod(void) { return can_dotprod() && is_allowed(DOTPROD); }
int avl_has_i8mm(void) { return avl_has_dotprod() && can_i8mm() && is_allowed(I8MM); }

#else

int avl_has_dotprod(void) { return 0; }
int avl_has_i8mm(void) { return 0; }

#endif
