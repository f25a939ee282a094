/* Vectors of the widest registers that the file is compiled for, on the compiler's vector extension: one source for
 * AVX-512, AVX2 and everything else. */
#ifndef EQC_SIMD_H
#define EQC_SIMD_H

#include <cstdint>
#include <cstring>

#if defined(EQC_ISA_AVX512)
#define EQC_ISA avx512
#define EQC_VECTOR_BYTES 64
#elif defined(EQC_ISA_AVX2)
#define EQC_ISA avx2
#define EQC_VECTOR_BYTES 32
#else
#define EQC_ISA portable
#define EQC_VECTOR_BYTES 16
#endif

#define EQC_INLINE inline __attribute__((always_inline))

namespace eqc {
/* Each instruction set has a namespace of its own, so that the linker never swaps their inline functions. */
inline namespace EQC_ISA {

template <class T>
struct Vector {
    static constexpr int lanes = EQC_VECTOR_BYTES / sizeof(T);
    typedef T type __attribute__((vector_size(EQC_VECTOR_BYTES)));
    typedef T unaligned __attribute__((vector_size(EQC_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <class T>
EQC_INLINE typename Vector<T>::type load(const T* p) {
    return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}
template <class T>
EQC_INLINE void store(T* p, typename Vector<T>::type value) {
    *reinterpret_cast<typename Vector<T>::unaligned*>(p) = value;
}
/* The first n lanes; the others are 0. */
template <class T>
EQC_INLINE typename Vector<T>::type load_first(const T* p, int n) {
    typename Vector<T>::type value{};
    if (n >= Vector<T>::lanes) return load(p);
    for (int lane = 0; lane < Vector<T>::lanes; ++lane)
        if (lane < n) value[lane] = p[lane];
    return value;
}
template <class T>
EQC_INLINE void store_first(T* p, typename Vector<T>::type value, int n) {
    if (n >= Vector<T>::lanes) return store(p, value);
    for (int lane = 0; lane < Vector<T>::lanes; ++lane)
        if (lane < n) p[lane] = value[lane];
}

}  // namespace EQC_ISA
}  // namespace eqc

#endif
