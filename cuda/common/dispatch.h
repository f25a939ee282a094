/* Defines an operation of the contract for the instruction set that this file is compiled for. The portable build also
 * defines the public function, which takes the widest set that there is and the flags allow.
 */
#ifndef EQC_DISPATCH_H
#define EQC_DISPATCH_H

#include "contract.h"
#include "processor.h"
#include "simd.h"

#define EQC_JOIN_(a, b) a##b
#define EQC_JOIN(a, b) EQC_JOIN_(a, b)
#define EQC_LOCAL(name) EQC_JOIN(EQC_JOIN(name, _), EQC_ISA)

#define EQC_DEFINE_LOCAL(symbol, arguments, function, T)                                                       \
    extern "C" size_t EQC_LOCAL(symbol##_workspace)(const arguments* a) { return function##_workspace<T>(a); } \
    extern "C" int EQC_LOCAL(symbol)(const arguments* a, void* workspace) { return function<T>(a, workspace); }

#define EQC_PUBLIC_PORTABLE(symbol, arguments)                                               \
    size_t symbol##_workspace(const arguments* a) { return symbol##_workspace_portable(a); } \
    int symbol(const arguments* a, void* workspace, void*) { return symbol##_portable(a, workspace); }

#if defined(EQC_ISA_AVX512) || defined(EQC_ISA_AVX2)
#define EQC_DEFINE_PUBLIC(symbol, arguments, widest)
#elif defined(__x86_64__)
#define EQC_DECLARE(symbol, arguments, set)                       \
    extern "C" size_t symbol##_workspace_##set(const arguments*); \
    extern "C" int symbol##_##set(const arguments*, void*);
#define EQC_DEFINE_PUBLIC(symbol, arguments, widest)                        \
    EQC_DECLARE(symbol, arguments, widest)                                  \
    EQC_DECLARE(symbol, arguments, avx512)                                  \
    EQC_DECLARE(symbol, arguments, avx2)                                    \
    size_t symbol##_workspace(const arguments* a) {                         \
        switch (eqc::instruction_set(a ? a->flags : 0)) {                   \
            case eqc::amx_set: return symbol##_workspace_##widest(a);       \
            case eqc::avx512_set: return symbol##_workspace_avx512(a);      \
            case eqc::avx2_set: return symbol##_workspace_avx2(a);          \
            default: return symbol##_workspace_portable(a);                 \
        }                                                                   \
    }                                                                       \
    int symbol(const arguments* a, void* workspace, void*) {                \
        switch (eqc::instruction_set(a ? a->flags : 0)) {                   \
            case eqc::amx_set: return symbol##_##widest(a, workspace);      \
            case eqc::avx512_set: return symbol##_avx512(a, workspace);     \
            case eqc::avx2_set: return symbol##_avx2(a, workspace);         \
            default: return symbol##_portable(a, workspace);                \
        }                                                                   \
    }
#else
#define EQC_DEFINE_PUBLIC(symbol, arguments, widest) EQC_PUBLIC_PORTABLE(symbol, arguments)
#endif

#define EQC_DEFINE_FOR(operation, arguments, function, widest)           \
    EQC_DEFINE_LOCAL(eqc_##operation##_f32, arguments, function, float)  \
    EQC_DEFINE_LOCAL(eqc_##operation##_f64, arguments, function, double) \
    EQC_DEFINE_PUBLIC(eqc_##operation##_f32, arguments, widest)          \
    EQC_DEFINE_PUBLIC(eqc_##operation##_f64, arguments, avx512)

#define EQC_DEFINE(operation, arguments, function) EQC_DEFINE_FOR(operation, arguments, function, avx512)

/* The same for an operation that is the portable build's alone, */
#define EQC_DEFINE_ONCE(operation, arguments, function)                  \
    EQC_DEFINE_LOCAL(eqc_##operation##_f32, arguments, function, float)  \
    EQC_DEFINE_LOCAL(eqc_##operation##_f64, arguments, function, double) \
    EQC_PUBLIC_PORTABLE(eqc_##operation##_f32, arguments)                \
    EQC_PUBLIC_PORTABLE(eqc_##operation##_f64, arguments)

/* and for one that uses the matrix unit, which computes in float only. */
#if defined(EQC_ISA_AMX)
#define EQC_DEFINE_AMX(operation, arguments, function) \
    EQC_DEFINE_LOCAL(eqc_##operation##_f32, arguments, function, float)
#else
#define EQC_DEFINE_AMX(operation, arguments, function) EQC_DEFINE_FOR(operation, arguments, function, amx)
#endif

#endif
