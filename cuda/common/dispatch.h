/* Defines an operation of the contract for the instruction set that this file is compiled for. The portable build also
 * defines the public function, which takes the widest set that the processor has and the flags (EQC_FS_AVX2 = 16,
 * EQC_FS_PORTABLE = 32 in every family) allow. */
#ifndef EQC_DISPATCH_H
#define EQC_DISPATCH_H

#include "contract.h"
#include "simd.h"

#define EQC_JOIN_(a, b) a##b
#define EQC_JOIN(a, b) EQC_JOIN_(a, b)
#define EQC_LOCAL(name) EQC_JOIN(EQC_JOIN(name, _), EQC_ISA)

#define EQC_DEFINE_LOCAL(symbol, arguments, function, T)                                                       \
    extern "C" size_t EQC_LOCAL(symbol##_workspace)(const arguments* a) { return function##_workspace<T>(a); } \
    extern "C" int EQC_LOCAL(symbol)(const arguments* a, void* workspace) { return function<T>(a, workspace); }

#if defined(EQC_ISA_AVX512) || defined(EQC_ISA_AVX2)
#define EQC_DEFINE_PUBLIC(symbol, arguments)
#elif defined(__x86_64__)
#define EQC_DEFINE_PUBLIC(symbol, arguments)                                           \
    extern "C" size_t symbol##_workspace_avx512(const arguments*);                     \
    extern "C" int symbol##_avx512(const arguments*, void*);                           \
    extern "C" size_t symbol##_workspace_avx2(const arguments*);                       \
    extern "C" int symbol##_avx2(const arguments*, void*);                             \
    size_t symbol##_workspace(const arguments* a) {                                    \
        const int level = eqc_instructions(a ? a->flags : 0);                          \
        if (level == 2) return symbol##_workspace_avx512(a);                           \
        return level == 1 ? symbol##_workspace_avx2(a) : symbol##_workspace_portable(a); \
    }                                                                                  \
    int symbol(const arguments* a, void* workspace, void*) {                           \
        const int level = eqc_instructions(a ? a->flags : 0);                          \
        if (level == 2) return symbol##_avx512(a, workspace);                          \
        return level == 1 ? symbol##_avx2(a, workspace) : symbol##_portable(a, workspace); \
    }

static inline int eqc_instructions(int flags) {
    if (flags & 32) return 0;
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 && !(flags & 16) ? 2 : avx2 ? 1 : 0;
}
#else
#define EQC_DEFINE_PUBLIC(symbol, arguments)                                                              \
    size_t symbol##_workspace(const arguments* a) { return symbol##_workspace_portable(a); }              \
    int symbol(const arguments* a, void* workspace, void*) { return symbol##_portable(a, workspace); }
#endif

#define EQC_DEFINE(operation, arguments, function)                             \
    EQC_DEFINE_LOCAL(eqc_##operation##_f32, arguments, function, float)        \
    EQC_DEFINE_LOCAL(eqc_##operation##_f64, arguments, function, double)       \
    EQC_DEFINE_PUBLIC(eqc_##operation##_f32, arguments)                        \
    EQC_DEFINE_PUBLIC(eqc_##operation##_f64, arguments)

#endif
