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

/* What for_columns cuts columns into. */
static_assert(kernel_vectors == 2, "a piece of columns is two vectors");
template <class T>
constexpr int panel_width = kernel_vectors* Vector<T>::lanes;

/* out[r, 0:n] (+)= sum_k a[r * row_step + k * inner_step] b[k * ldb + 0:n], R rows, n <= V vectors. With `padded` b has
 * whole vectors. */
template <class T, int R, int V, bool full, bool padded>
EQC_INLINE void product_block(int64_t inner, const T* a, int64_t row_step, int64_t inner_step, const T* b, int64_t ldb,
                              T* out, int64_t ldo, int last, bool add) {
    using vector = typename Vector<T>::type;
    vector sum[R][V] = {};
    for (int64_t k = 0; k < inner; ++k) {
        vector right[V];
        load_row<T, V, full || padded>(b + k * ldb, last, right);
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < V; ++j) sum[r][j] += a[r * row_step + k * inner_step] * right[j];
    }
    for (int r = 0; r < R; ++r) store_row<T, V, full>(out + r * ldo, last, sum[r], add);
}

template <class T, int V, bool full, bool padded>
inline void product_columns(int64_t rows, int64_t inner, const T* a, int64_t row_step, int64_t inner_step, const T* b,
                            int64_t ldb, T* out, int64_t ldo, int last, bool add) {
    constexpr int most = kernel_rows * kernel_vectors / V;
    int64_t r = 0;
    for (; r + most <= rows; r += most)
        product_block<T, most, V, full, padded>(inner, a + r * row_step, row_step, inner_step, b, ldb, out + r * ldo,
                                                ldo, last, add);
    for (; r + 4 <= rows; r += 4)
        product_block<T, 4, V, full, padded>(inner, a + r * row_step, row_step, inner_step, b, ldb, out + r * ldo, ldo,
                                             last, add);
    for (; r < rows; ++r)
        product_block<T, 1, V, full, padded>(inner, a + r * row_step, row_step, inner_step, b, ldb, out + r * ldo, ldo,
                                             last, add);
}

/* out[rows, columns] (+)= a · b; element (r, k) of a is a[r * row_step + k * inner_step], b is [inner, columns]. */
template <class T>
inline void product(int64_t rows, int64_t columns, int64_t inner, const T* a, int64_t row_step, int64_t inner_step,
                    const T* b, int64_t ldb, T* out, int64_t ldo, bool add) {
    for_columns<T>(columns, [&](int64_t at, auto V, auto full, int last) EQC_INLINE_LAMBDA {
        product_columns<T, V(), full(), false>(rows, inner, a, row_step, inner_step, b + at, ldb, out + at, ldo, last,
                                               add);
    });
}

/* A matrix [inner, columns] as panels of whole vectors, one after the other, 0 beyond the columns. */
template <class T>
struct Panels {
    int64_t inner, columns;
    T* data;

    static int64_t count(int64_t inner, int64_t columns) {
        return inner * ((columns + panel_width<T> - 1) / panel_width<T>)*panel_width<T>;
    }
    /* row(k) is row k of the matrix. */
    template <class Row>
    void pack(const Row& row) const {
        T* to = data;
        for (int64_t at = 0; at < columns; at += panel_width<T>)
            for (int64_t k = 0; k < inner; ++k, to += panel_width<T>)
                for (int64_t j = 0; j < panel_width<T>; ++j) to[j] = at + j < columns ? row(k)[at + j] : T(0);
    }
};

/* out[rows, columns] = a[rows, inner] · b. Parts of a panel stay in the first-level cache while all rows pass. */
template <class T>
inline void product(int64_t rows, const T* a, int64_t lda, const Panels<T>& b, T* out, int64_t ldo) {
    constexpr int64_t part = 32768 / (panel_width<T> * int64_t(sizeof(T)));
    for_columns<T>(b.columns, [&](int64_t at, auto V, auto full, int last) EQC_INLINE_LAMBDA {
        const T* panel = b.data + at * b.inner;
        for (int64_t k = 0; k == 0 || k < b.inner; k += part) {
            const int64_t inner = b.inner - k < part ? b.inner - k : part;
            product_columns<T, V(), full(), true>(rows, inner, a + k, lda, 1, panel + k * panel_width<T>,
                                                  panel_width<T>, out + at, ldo, last, k > 0);
        }
    });
}

}  // namespace EQC_ISA
}  // namespace eqc

#endif
