/* Vectors of the widest registers that the file is compiled for, on the compiler's vector extension: one source for
 * AVX-512, AVX2 and everything else. */
#ifndef EQC_SIMD_H
#define EQC_SIMD_H

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(EQC_ISA_AMX)
#define EQC_ISA amx
#define EQC_ISA_AVX512
#define EQC_VECTOR_BYTES 64
#elif defined(EQC_ISA_AVX512)
#define EQC_ISA avx512
#define EQC_VECTOR_BYTES 64
#elif defined(EQC_ISA_AVX2)
#define EQC_ISA avx2
#define EQC_VECTOR_BYTES 32
#else
#define EQC_ISA portable
#define EQC_VECTOR_BYTES 16
#endif

#if defined(EQC_ISA_AVX512) || defined(EQC_ISA_AVX2)
#include <immintrin.h>
#endif

/* Wide vectors go in and out of inlined functions only, so how they would be passed does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define EQC_INLINE inline __attribute__((always_inline))
#define EQC_INLINE_LAMBDA __attribute__((always_inline))

namespace eqc {
/* Each instruction set has a namespace of its own, so that the linker never swaps their inline functions. */
inline namespace EQC_ISA {

template <class T, int N>
struct Lanes {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
    typedef T unaligned __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};

/* The full registers. */
template <class T>
struct Vector : Lanes<T, EQC_VECTOR_BYTES / sizeof(T)> {
    static constexpr int lanes = EQC_VECTOR_BYTES / sizeof(T);
};

/* Eight numbers: eight edges, or eight matrices. */
template <class T>
using Eight = typename Lanes<T, 8>::type;

template <class T>
EQC_INLINE typename Vector<T>::type load(const T* p) {
    return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}
template <class T>
EQC_INLINE void store(T* p, typename Vector<T>::type value) {
    *reinterpret_cast<typename Vector<T>::unaligned*>(p) = value;
}
template <class T>
EQC_INLINE Eight<T> load8(const T* p) {
    return *reinterpret_cast<const typename Lanes<T, 8>::unaligned*>(p);
}
template <class T>
EQC_INLINE void store8(T* p, Eight<T> value) {
    *reinterpret_cast<typename Lanes<T, 8>::unaligned*>(p) = value;
}

/* The first n lanes, 0 < n <= lanes; the others are 0 when loaded, and left alone when stored. */
template <class T>
EQC_INLINE typename Vector<T>::type load_first(const T* p, int n) {
#if defined(EQC_ISA_AVX512)
    if constexpr (sizeof(T) == 4)
        return reinterpret_cast<typename Vector<T>::type>(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
    else
        return reinterpret_cast<typename Vector<T>::type>(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
#else
    typename Vector<T>::type value{};
    for (int lane = 0; lane < Vector<T>::lanes; ++lane)
        if (lane < n) value[lane] = p[lane];
    return value;
#endif
}
template <class T>
EQC_INLINE void store_first(T* p, typename Vector<T>::type value, int n) {
#if defined(EQC_ISA_AVX512)
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), reinterpret_cast<__m512>(value));
    else
        _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), reinterpret_cast<__m512d>(value));
#else
    for (int lane = 0; lane < Vector<T>::lanes; ++lane)
        if (lane < n) p[lane] = value[lane];
#endif
}

/* Vectors V cover a row of at most V * lanes numbers, of which the last vector has the first `last`. */
template <class T, int V, bool full>
EQC_INLINE void load_row(const T* p, int last, typename Vector<T>::type (&row)[V]) {
    for (int k = 0; k < V; ++k)
        row[k] = full || k < V - 1 ? load(p + k * Vector<T>::lanes) : load_first(p + k * Vector<T>::lanes, last);
}
template <class T, int V, bool full>
EQC_INLINE void store_row(T* p, int last, const typename Vector<T>::type (&row)[V], bool add) {
    for (int k = 0; k < V; ++k) {
        T* target = p + k * Vector<T>::lanes;
        if (full || k < V - 1)
            store(target, add ? load(target) + row[k] : row[k]);
        else
            store_first(target, add ? load_first(target, last) + row[k] : row[k], last);
    }
}

/* Cuts columns into pieces of two vectors and calls body(first column, V, full, last) for each: V vectors, of which the
 * last has the first `last` lanes, all of them when `full`. V and `full` are constants by their type. */
template <class T, class Body>
EQC_INLINE void for_columns(int64_t columns, const Body& body) {
    constexpr int lanes = Vector<T>::lanes;
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    for (int64_t at = 0; at < columns; at += 2 * lanes) {
        const int64_t left = columns - at;
        if (left >= 2 * lanes)
            body(at, Two(), std::true_type(), lanes);
        else if (left > lanes)
            body(at, Two(), std::false_type(), int(left) - lanes);
        else if (left == lanes)
            body(at, One(), std::true_type(), lanes);
        else
            body(at, One(), std::false_type(), int(left));
    }
}

/* Asks for a row of n numbers, or its first 256 bytes. */
template <class T>
EQC_INLINE void prefetch(const T* row, int64_t n) {
    const char* line = reinterpret_cast<const char*>(row);
    const int64_t bytes = n * int64_t(sizeof(T));
    __builtin_prefetch(line);
    if (bytes > 64) __builtin_prefetch(line + 64);
    if (bytes > 128) {
        __builtin_prefetch(line + 128);
        __builtin_prefetch(line + 192);
    }
}

template <int D, class V, size_t... I>
EQC_INLINE V lower_halves(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I & D ? int(sizeof...(I) + I - D) : int(I))...);
}
template <int D, class V, size_t... I>
EQC_INLINE V upper_halves(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I & D ? int(sizeof...(I) + I) : int(I + D))...);
}

/* Transposes N vectors of N lanes: blocks of D lanes change places, then of 2 D. */
template <int N, int D = 1, class V>
EQC_INLINE void transpose(V (&rows)[N]) {
    for (int i = 0; i < N; ++i) {
        if (i & D) continue;
        const V a = rows[i], b = rows[i + D];
        rows[i] = lower_halves<D>(a, b, std::make_index_sequence<N>());
        rows[i + D] = upper_halves<D>(a, b, std::make_index_sequence<N>());
    }
    if constexpr (2 * D < N) transpose<N, 2 * D>(rows);
}

/* out[j, i] = a[i, j] for a [rows, columns]. */
template <class T>
inline void transpose_matrix(int64_t rows, int64_t columns, const T* a, int64_t lda, T* out, int64_t ldo) {
    constexpr int lanes = Vector<T>::lanes;
    for (int64_t i = 0; i < rows; i += lanes)
        for (int64_t j = 0; j < columns; j += lanes) {
            const int height = int(rows - i < lanes ? rows - i : lanes);
            const int width = int(columns - j < lanes ? columns - j : lanes);
            typename Vector<T>::type block[lanes] = {};
            for (int k = 0; k < height; ++k) block[k] = load_first(a + (i + k) * lda + j, width);
            transpose(block);
            for (int k = 0; k < width; ++k) store_first(out + (j + k) * ldo + i, block[k], height);
        }
}

/* The sum of eight vectors, as a tree. */
template <class V>
EQC_INLINE V sum(const V (&v)[8]) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/* The largest lane; NaN is passed over where another lane is a number. */
template <class T>
EQC_INLINE T largest(Eight<T> v) {
    Eight<T> other = __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v = v > other ? v : other;
    other = __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    v = v > other ? v : other;
    return v[0] > v[1] ? v[0] : v[1];
}

/* Whether each lane is at least `floor`; NaN is not. */
template <class T>
EQC_INLINE bool all_reach(Eight<T> v, T floor) {
#if defined(EQC_ISA_AVX512)
    if constexpr (sizeof(T) == 4)
        return _mm256_cmp_ps_mask(reinterpret_cast<__m256>(v), _mm256_set1_ps(floor), _CMP_NGE_UQ) == 0;
    else
        return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(v), _mm512_set1_pd(floor), _CMP_NGE_UQ) == 0;
#else
    bool all = true;
    for (int lane = 0; lane < 8; ++lane) all &= v[lane] >= floor;
    return all;
#endif
}

}  // namespace EQC_ISA
}  // namespace eqc

#endif
