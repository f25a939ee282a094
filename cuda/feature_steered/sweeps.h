/* The sparse sweeps of feature-steered convolution over the edges of a row: sums of neighbours, inner products with
 * them, and sums into them. Weights come in groups of eight edges, p[g, m, lane].
 */
#ifndef EQC_FEATURE_STEERED_SWEEPS_H
#define EQC_FEATURE_STEERED_SWEEPS_H

#include <type_traits>

#include "../common/dense.h"
#include "sizes.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* Calls body(std::integral_constant<int, n>) for the n in 1..most that `count` is. */
template <int most, class Body>
EQC_INLINE void with_count(int count, const Body& body) {
    if constexpr (most > 1) {
        if (count < most) return with_count<most - 1>(count, body);
    }
    body(std::integral_constant<int, most>());
}

/* Weights as Assignment::softmax writes them: of edge e and matrix m at p[(e / 8) * 8 * Ms + m * 8 + e % 8]. */
template <class T>
struct Grouped {
    const T* p;
    int64_t Ms;
    static constexpr int run = group, step = group;
    const T* from(int64_t e) const { return p + e * Ms; } /* e: a multiple of eight */
};

/* Weights [edges, Ms]. */
template <class T>
struct Plain {
    const T* p;
    int64_t Ms;
    static constexpr int run = 1, step = 1;
    const T* from(int64_t e) const { return p + e * Ms; }
};

/* out[m, 0:n] (+)= sum_e weights(e)[m] row(e)[0:n] for MB matrices and V vectors of channels. */
template <class T, int MB, int V, bool full, class Weights, class Row>
EQC_INLINE void gather_block(const Weights& weights, int64_t m, const Row& row, int64_t count, int last, T* out,
                             int64_t ldo, bool add) {
    typename Vector<T>::type sum[MB][V] = {};
    for (int64_t start = 0; start < count; start += Weights::run) {
        const T* p = weights.from(start) + m * Weights::step;
        const int64_t run = smaller(Weights::run, count - start);
        for (int64_t e = 0; e < run; ++e) {
            typename Vector<T>::type right[V];
            load_row<T, V, full>(row(start + e), last, right);
            for (int k = 0; k < MB; ++k)
                for (int j = 0; j < V; ++j) sum[k][j] += p[e + k * Weights::step] * right[j];
        }
    }
    for (int k = 0; k < MB; ++k) store_row<T, V, full>(out + k * ldo, last, sum[k], add);
}

template <class T, int V, bool full, class Weights, class Row>
inline void gather_columns(int64_t M, const Weights& weights, const Row& row, int64_t count, int last, T* out,
                           int64_t ldo, bool add) {
    int64_t m = 0;
    for (; m + kernel_rows <= M; m += kernel_rows)
        gather_block<T, kernel_rows, V, full>(weights, m, row, count, last, out + m * ldo, ldo, add);
    for (; m + 4 <= M; m += 4) gather_block<T, 4, V, full>(weights, m, row, count, last, out + m * ldo, ldo, add);
    for (; m < M; ++m) gather_block<T, 1, V, full>(weights, m, row, count, last, out + m * ldo, ldo, add);
}

/* out[M, C] (+)= sum_e weights(e)[m] row(e)[c]. */
template <class T, class Weights, class Row>
EQC_INLINE void gather(int64_t M, int64_t C, const Weights& weights, const Row& row, int64_t count, T* out, bool add) {
    for_columns<T>(C, [&](int64_t c, auto V, auto full, int last) EQC_INLINE_LAMBDA {
        const auto part = [&](int64_t e) EQC_INLINE_LAMBDA { return row(e) + c; };
        gather_columns<T, V(), full()>(M, weights, part, count, last, out + c, C, add);
    });
}

/* y[0:D] += sum_e sum_m p[e, m] h(e)[m, 0:D]; four sums a vector hide the latency. */
template <class T, int V, bool full>
inline void gather_transformed_columns(int64_t M, int64_t D, const Grouped<T>& weights, const int32_t* col, const T* h,
                                       int64_t count, int last, T* y) {
    typename Vector<T>::type sum[4][V] = {};
    for (int64_t e = 0; e < count; ++e) {
        const T *row = h + int64_t(col[e]) * M * D, *p = weights.from(e / group * group) + e % group;
        int64_t m = 0;
        for (; m + 4 <= M; m += 4)
            for (int k = 0; k < 4; ++k) {
                typename Vector<T>::type right[V];
                load_row<T, V, full>(row + (m + k) * D, last, right);
                for (int j = 0; j < V; ++j) sum[k][j] += p[(m + k) * group] * right[j];
            }
        for (; m < M; ++m) {
            typename Vector<T>::type right[V];
            load_row<T, V, full>(row + m * D, last, right);
            for (int j = 0; j < V; ++j) sum[0][j] += p[m * group] * right[j];
        }
    }
    for (int j = 0; j < V; ++j) sum[0][j] = (sum[0][j] + sum[1][j]) + (sum[2][j] + sum[3][j]);
    store_row<T, V, full>(y, last, sum[0], true);
}

template <class T>
inline void gather_transformed(int64_t M, int64_t D, const Grouped<T>& weights, const int32_t* col, const T* h,
                               int64_t count, T* y) {
    for_columns<T>(D, [&](int64_t d, auto V, auto full, int last) EQC_INLINE_LAMBDA {
        gather_transformed_columns<T, V(), full()>(M, D, weights, col, h + d, count, last, y + d);
    });
}

/* dz [M, C] turned over, so that inner products with neighbours run along m: [ceil(C / pair), Ms, pair], where `pair`
 * channels lie together so that eight matrices fill a register; 0 where there is no channel or no matrix. */
template <class T>
struct Turned {
    static constexpr int pair = Vector<T>::lanes > group ? Vector<T>::lanes / group : 1;
    static_assert(pair <= 2, "a pair of channels is read as one number of twice the size");
    using Element = std::conditional_t<pair == 2, double, T>;
    static constexpr int side = EQC_VECTOR_BYTES / sizeof(Element);

    static int64_t count(const Sizes<T>& n) { return padded(n.C, Vector<T>::lanes) * n.Ms; }

    static EQC_INLINE void turn(const Sizes<T>& n, const T* dz, T* out) {
        using vector = typename Vector<T>::type;
        using Block = typename Lanes<Element, side>::type;
        for (int64_t c = 0; c < n.C; c += Vector<T>::lanes) {
            const int width = int(smaller(Vector<T>::lanes, n.C - c));
            for (int64_t m = 0; m < n.Ms; m += side) {
                Block block[side];
                for (int k = 0; k < side; ++k) {
                    const T* row = dz + (m + k) * n.C + c;
                    vector value{};
                    if (m + k < n.M) value = width == Vector<T>::lanes ? load(row) : load_first(row, width);
                    block[k] = reinterpret_cast<Block>(value);
                }
                transpose(block);
                for (int k = 0; k < side; ++k)
                    store(out + ((c / pair + k) * n.Ms + m) * pair, reinterpret_cast<vector>(block[k]));
            }
        }
    }
};

/* The numbers x[0:pair] in every pair of lanes. */
template <class T>
EQC_INLINE typename Vector<T>::type spread(const T* x) {
#if defined(EQC_ISA_AVX512)
    if constexpr (sizeof(T) == 4) {
        double both;
        std::memcpy(&both, x, sizeof both);
        return reinterpret_cast<typename Vector<T>::type>(_mm512_set1_pd(both));
    } else
#endif
        return *x - typename Vector<T>::type{};
}

/* g[e, 0:lanes/pair] = sum_c dz[m, c] x_e[c] for EB neighbours and VB vectors of matrices. */
template <class T, int EB, int VB>
EQC_INLINE void inner_block(const Sizes<T>& n, const T* turned, const T* const* x, T* g) {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes, pair = Turned<T>::pair;
    vector sum[EB][VB] = {};
    const int64_t whole = n.C / pair * pair;
    for (int64_t c = 0; c < whole; c += pair) {
        vector right[VB];
        for (int j = 0; j < VB; ++j) right[j] = load(turned + c * n.Ms + j * lanes);
        for (int e = 0; e < EB; ++e) {
            const vector both = spread<T>(x[e] + c);
            for (int j = 0; j < VB; ++j) sum[e][j] += both * right[j];
        }
    }
    if constexpr (pair == 2) {
        if (whole < n.C)
            for (int e = 0; e < EB; ++e) {
                const T both[2] = {x[e][whole], T(0)};
                for (int j = 0; j < VB; ++j) sum[e][j] += spread<T>(both) * load(turned + whole * n.Ms + j * lanes);
            }
        for (int e = 0; e < EB; e += 2)
            for (int j = 0; j < VB; ++j) {
                const vector a = sum[e][j], b = sum[e + 1 < EB ? e + 1 : e][j];
                const vector both =
                    __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
                    __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
                T halves[lanes];
                store(halves, both);
                store8(g + e * n.Ms + j * group, load8(halves));
                if (e + 1 < EB) store8(g + (e + 1) * n.Ms + j * group, load8(halves + group));
            }
    } else {
        for (int e = 0; e < EB; ++e)
            for (int j = 0; j < VB; ++j) store(g + e * n.Ms + j * lanes, sum[e][j]);
    }
}

/* g[e, m] = sum_c dz[m, c] row(e)[c]. */
template <class T, class Row>
EQC_INLINE void inner_products(const Sizes<T>& n, const T* turned, const Row& row, int64_t count, T* g) {
    constexpr int step = Vector<T>::lanes / Turned<T>::pair;
    for (int64_t start = 0; start < count; start += kernel_rows)
        with_count<kernel_rows>(int(smaller(kernel_rows, count - start)), [&](auto edges) EQC_INLINE_LAMBDA {
            constexpr int EB = decltype(edges)::value;
            const T* x[EB];
            for (int e = 0; e < EB; ++e) x[e] = row(start + e);
            int64_t m = 0;
            for (; m + 2 * step <= n.Ms; m += 2 * step)
                inner_block<T, EB, 2>(n, turned + m * Turned<T>::pair, x, g + start * n.Ms + m);
            if (m < n.Ms) inner_block<T, EB, 1>(n, turned + m * Turned<T>::pair, x, g + start * n.Ms + m);
        });
}

template <class T, int EB, int V, bool full>
EQC_INLINE void scatter_block(int64_t M, int64_t C, const T* p, const T* dz, T* const* out, int64_t c, int last) {
    typename Vector<T>::type sum[EB][V] = {};
    for (int64_t m = 0; m < M; ++m) {
        typename Vector<T>::type right[V];
        load_row<T, V, full>(dz + m * C + c, last, right);
        for (int e = 0; e < EB; ++e)
            for (int j = 0; j < V; ++j) sum[e][j] += p[m * group + e] * right[j];
    }
    for (int e = 0; e < EB; ++e) store_row<T, V, full>(out[e] + c, last, sum[e], true);
}

/* row(e)[0:C] += sum_m weights(e)[m] dz[m, 0:C]; rows may be the same. */
template <class T, class Row>
EQC_INLINE void scatter(int64_t M, int64_t C, const Grouped<T>& weights, const T* dz, int64_t count, const Row& row) {
    for (int64_t start = 0; start < count; start += kernel_rows)
        with_count<kernel_rows>(int(smaller(kernel_rows, count - start)), [&](auto edges) EQC_INLINE_LAMBDA {
            constexpr int EB = decltype(edges)::value;
            const T* p = weights.from(start / group * group) + start % group;
            T* out[EB];
            for (int e = 0; e < EB; ++e) out[e] = row(start + e);
            for_columns<T>(C, [&](int64_t c, auto V, auto full, int last) EQC_INLINE_LAMBDA {
                scatter_block<T, EB, V(), full()>(M, C, p, dz, out, c, last);
            });
        });
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
