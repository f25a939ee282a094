/* Small dense products on the tiles of a fused kernel. */
#ifndef EQC_DENSE_H
#define EQC_DENSE_H

#include "simd.h"

namespace eqc {
inline namespace EQC_ISA {

/* Rows and vectors of accumulators that stay in registers. */
#if defined(EQC_ISA_AVX512)
constexpr int kernel_rows = 8, kernel_vectors = 2;
#else
constexpr int kernel_rows = 4, kernel_vectors = 2;
#endif

/* out[r, 0:n] (+)= sum_k a[r * row_step + k * inner_step] b[k * ldb + 0:n], R rows, n <= V vectors. */
template <class T, int R, int V>
EQC_INLINE void product_block(int64_t inner, const T* a, int64_t row_step, int64_t inner_step, const T* b, int64_t ldb,
                              T* out, int64_t ldo, int n, bool add) {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
    vector sum[R][V] = {};
    const int last = n - (V - 1) * lanes;
    if (last == lanes) {
        for (int64_t k = 0; k < inner; ++k) {
            vector right[V];
            for (int j = 0; j < V; ++j) right[j] = load(b + k * ldb + j * lanes);
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < V; ++j) sum[r][j] += a[r * row_step + k * inner_step] * right[j];
        }
    } else {
        for (int64_t k = 0; k < inner; ++k) {
            vector right[V];
            for (int j = 0; j < V - 1; ++j) right[j] = load(b + k * ldb + j * lanes);
            right[V - 1] = load_first(b + k * ldb + (V - 1) * lanes, last);
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < V; ++j) sum[r][j] += a[r * row_step + k * inner_step] * right[j];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < V; ++j) {
            T* target = out + r * ldo + j * lanes;
            const int width = j == V - 1 ? last : lanes;
            vector value = sum[r][j];
            if (add) value += load_first(target, width);
            store_first(target, value, width);
        }
}

template <class T, int V>
inline void product_columns(int64_t rows, int64_t inner, const T* a, int64_t row_step, int64_t inner_step, const T* b,
                            int64_t ldb, T* out, int64_t ldo, int n, bool add) {
    int64_t r = 0;
    for (; r + kernel_rows <= rows; r += kernel_rows)
        product_block<T, kernel_rows, V>(inner, a + r * row_step, row_step, inner_step, b, ldb, out + r * ldo, ldo, n, add);
    for (; r < rows; ++r)
        product_block<T, 1, V>(inner, a + r * row_step, row_step, inner_step, b, ldb, out + r * ldo, ldo, n, add);
}

/* out[rows, columns] (+)= a · b; element (r, k) of a is a[r * row_step + k * inner_step], b is [inner, columns]. */
template <class T>
inline void product(int64_t rows, int64_t columns, int64_t inner, const T* a, int64_t row_step, int64_t inner_step,
                    const T* b, int64_t ldb, T* out, int64_t ldo, bool add) {
    constexpr int lanes = Vector<T>::lanes, wide = kernel_vectors * lanes;
    for (int64_t at = 0; at < columns; at += wide) {
        const int n = int(columns - at < wide ? columns - at : wide);
        if (n > lanes)
            product_columns<T, kernel_vectors>(rows, inner, a, row_step, inner_step, b + at, ldb, out + at, ldo, n, add);
        else
            product_columns<T, 1>(rows, inner, a, row_step, inner_step, b + at, ldb, out + at, ldo, n, add);
    }
}

}  // namespace EQC_ISA
}  // namespace eqc

#endif
