/* The arithmetic that device code has without a header: min and max of mixed types, the intrinsics with a rounding mode
 * or less accuracy (here as accurate as the library), bits. */
#ifndef EQC_EMULATED_MATHS_H
#define EQC_EMULATED_MATHS_H

#include <math.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#define EQC_EMULATED_MIN_MAX(Left, Right, Result)                                   \
    constexpr Result min(Left left, Right right) {                                  \
        const Result a = static_cast<Result>(left), b = static_cast<Result>(right); \
        return b < a ? b : a;                                                       \
    }                                                                               \
    constexpr Result max(Left left, Right right) {                                  \
        const Result a = static_cast<Result>(left), b = static_cast<Result>(right); \
        return a < b ? b : a;                                                       \
    }

EQC_EMULATED_MIN_MAX(int, int, int)
EQC_EMULATED_MIN_MAX(unsigned, unsigned, unsigned)
EQC_EMULATED_MIN_MAX(int, unsigned, unsigned)
EQC_EMULATED_MIN_MAX(unsigned, int, unsigned)
EQC_EMULATED_MIN_MAX(long, long, long)
EQC_EMULATED_MIN_MAX(unsigned long, unsigned long, unsigned long)
EQC_EMULATED_MIN_MAX(long, unsigned long, unsigned long)
EQC_EMULATED_MIN_MAX(unsigned long, long, unsigned long)
EQC_EMULATED_MIN_MAX(long long, long long, long long)
EQC_EMULATED_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
EQC_EMULATED_MIN_MAX(long long, unsigned long long, unsigned long long)
EQC_EMULATED_MIN_MAX(unsigned long long, long long, unsigned long long)
#undef EQC_EMULATED_MIN_MAX

/* Of a number and a NaN the number, as on the device. */
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

/* Macros, because the C library declares some of these names for itself. */
#define __expf(x) ::expf(x)
#define __exp10f(x) ::powf(10.0f, x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __log10f(x) ::log10f(x)
#define __powf(x, y) ::powf(x, y)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __tanf(x) ::tanf(x)

inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

namespace eqc_emulation {
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace eqc_emulation

inline int __float_as_int(float x) { return eqc_emulation::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return eqc_emulation::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return eqc_emulation::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return eqc_emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return eqc_emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return eqc_emulation::same_bits<double>(x); }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(std::floor(x)); }
inline int __float2int_ru(float x) { return int(std::ceil(x)); }
inline float __int2float_rn(int x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) {
        reversed |= (x >> bit & 1u) << (31 - bit);
    }
    return reversed;
}

#endif
