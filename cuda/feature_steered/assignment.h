/* From features to the weights of the edges: the softmax of feature-steered convolution, in factors.
 *
 * exp(a_i + s_j) is the product of exp(a_i - max a_i) and exp(s_j - max s_j), so that an edge takes no exponential.
 * Where the products of an edge are all so small that digits are lost, the edge is computed from its own logits. Logits
 * are summed in double and centred on a mean of x, so that an offset of the features costs no digits.
 */
#ifndef EQC_FEATURE_STEERED_ASSIGNMENT_H
#define EQC_FEATURE_STEERED_ASSIGNMENT_H

#include <cmath>
#include <cstring>
#include <limits>

#include "../common/dense.h"
#include "../common/exponential.h"
#include "../common/parallel.h"
#include "sizes.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

constexpr int64_t sampled_rows = 1024;

/* Below this the factored denominator has lost digits (float: 2^-40, double: 2^-330). */
template <class T>
constexpr T denominator_floor = sizeof(T) == 4 ? T(0x1p-40) : T(0x1p-330);

template <class T>
struct Assignment {
    const Arguments& a;
    Sizes<T> n;
    double* mean;    /* [C] */
    double* uv;      /* [C, 2 Ms] u and v side by side */
    double* offset;  /* [Ms] c + (u + v)·mean, -infinity beyond M */
    double* nothing; /* [Ms] 0, -infinity beyond M */
    T* es;           /* [cols, Ms] exp(s - max s), 0 beyond M */
    T* ea;           /* [rows, Ms] exp(a - max a), 0 beyond M */

    Assignment(const Arguments& arguments, Arena& arena) : a(arguments), n(arguments) {
        mean = arena.take<double>(n.C);
        uv = arena.take<double>(n.C * 2 * n.Ms);
        offset = arena.take<double>(n.Ms);
        nothing = arena.take<double>(n.Ms);
        es = arena.take<T>(a.cols * n.Ms);
        ea = arena.take<T>(a.rows * n.Ms);
    }

    void pack() {
        const T* x = static_cast<const T*>(a.x);
        const int64_t sampled = smaller(a.cols, sampled_rows);
        for (int64_t c = 0; c < n.C; ++c) {
            double sum = 0;
            for (int64_t k = 0; k < sampled; ++k) {
                const double value = double(x[(k * a.cols / sampled) * n.C + c]);
                if (std::isfinite(value)) sum += value / double(sampled);
            }
            /* Any constant near the features serves; one that is not finite would spoil every row. */
            mean[c] = std::isfinite(sum) ? sum : 0;
        }
        const T *gu = static_cast<const T*>(a.u), *gv = static_cast<const T*>(a.v), *gc = static_cast<const T*>(a.c);
        for (int64_t m = 0; m < n.Ms; ++m) {
            nothing[m] = m < n.M ? 0 : -std::numeric_limits<double>::infinity();
            offset[m] = m < n.M ? double(gc[m]) : nothing[m];
        }
        for (int64_t c = 0; c < n.C; ++c)
            for (int64_t m = 0; m < n.Ms; ++m) {
                const double cu = m < n.M ? double(gu[c * n.M + m]) : 0, cv = m < n.M ? double(gv[c * n.M + m]) : 0;
                uv[c * 2 * n.Ms + m] = cu;
                uv[c * 2 * n.Ms + n.Ms + m] = cv;
                offset[m] += (cu + cv) * mean[c];
            }
    }

    /* Doubles that `factors` works in. */
    static int64_t scratch(const Sizes<T>& n) { return n.tile * (n.C + 2 * n.Ms); }

    /* Factors of at most a tile of features from the first `from` on: of u when `to_ea`, of v when `to_es`. */
    void factors(const T* features, int64_t from, int64_t rows, double* room, T* to_ea, T* to_es) const {
        double *centred = room, *logits = room + n.tile * n.C;
        const T* x = features + from * n.C;
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t c = 0; c < n.C; ++c) centred[i * n.C + c] = double(x[i * n.C + c]) - mean[c];
        }
        const int64_t begin = to_ea ? 0 : n.Ms, end = to_es ? 2 * n.Ms : n.Ms;
        product<double>(rows, end - begin, n.C, centred, n.C, 1, uv + begin, 2 * n.Ms, logits + begin, 2 * n.Ms, false);
        if (to_ea) exponentiate(logits, offset, rows, to_ea + from * n.Ms);
        if (to_es) exponentiate(logits + n.Ms, nothing, rows, to_es + from * n.Ms);
    }

    /* out = exp(l - max l) for l = logits + add. */
    EQC_INLINE void exponentiate(const double* logits, const double* add, int64_t rows, T* out) const {
        for (int64_t i = 0; i < rows; ++i) {
            const double* l = logits + i * 2 * n.Ms;
            Eight<double> top = load8(l) + load8(add);
            for (int64_t m = group; m < n.Ms; m += group) {
                const Eight<double> other = load8(l + m) + load8(add + m);
                top = other > top ? other : top;
            }
            const double most = largest<double>(top);
            for (int64_t m = 0; m < n.Ms; m += group) {
                const Eight<double> below = load8(l + m) + load8(add + m) - most;
                store8<T>(out + i * n.Ms + m, __builtin_convertvector(below, Eight<T>));
            }
        }
        exponentials(out, rows * n.Ms);
    }

    /* ea at every row and es at every column. */
    void vertices(int threads, double* room, int64_t room_step) const {
        const bool shared = a.centre == a.x;
        every_tile(threads, a.cols, room, room_step, static_cast<const T*>(a.x), shared ? ea : nullptr, es);
        if (!shared) every_tile(threads, a.rows, room, room_step, static_cast<const T*>(a.centre), ea, nullptr);
    }

    void every_tile(int threads, int64_t rows, double* room, int64_t room_step, const T* features, T* to_ea,
                    T* to_es) const {
        parallel_for(threads, (rows + n.tile - 1) / n.tile, [&](int64_t tile, int thread) {
            factors(features, tile * n.tile, smaller(n.tile, rows - tile * n.tile), room + thread * room_step, to_ea,
                    to_es);
        });
    }

    /* One edge from its own logits, with its own maximum; q[m * group]. */
    __attribute__((noinline)) void edge(int64_t i, int64_t j, T* q) const {
        const T *xi = static_cast<const T*>(a.centre) + i * n.C, *xj = static_cast<const T*>(a.x) + j * n.C;
        double total = 0, top = -std::numeric_limits<double>::infinity();
        const auto logit = [&](int64_t m) {
            double l = offset[m];
            for (int64_t c = 0; c < n.C; ++c)
                {
                const double* both = uv + c * 2 * n.Ms + m;
                l += (double(xi[c]) - mean[c]) * both[0] + (double(xj[c]) - mean[c]) * both[n.Ms];
            }
            return l;
        };
        for (int64_t m = 0; m < n.M; ++m) {
            const double l = logit(m);
            top = l > top || l != l ? l : top;
        }
        for (int64_t m = 0; m < n.M; ++m) total += std::exp(logit(m) - top);
        for (int64_t m = 0; m < n.M; ++m) q[m * group] = T(std::exp(logit(m) - top) / total);
    }

    /* Weights of `count` edges of row i from slot `first` on, in groups of eight: p[g, m, lane] = w q. With `q` the
     * assignments themselves too. Lanes beyond the last edge hold nothing of use. */
    template <bool with_q>
    EQC_INLINE void softmax(int64_t i, int64_t first, int64_t count, T* p, T* q) const {
        const int64_t step = n.Ms * group;
        int64_t start = 0;
        for (; start + group <= count; start += group, p += step, q += with_q ? step : 0)
            softmax_of_group<with_q, true>(i, first + start, group, p, q);
        if (start < count) softmax_of_group<with_q, false>(i, first + start, int(count - start), p, q);
    }

    template <bool with_q, bool full>
    EQC_INLINE void softmax_of_group(int64_t i, int64_t slot, int edges, T* p, T* q) const {
        const T *rows[group], *own = ea + i * n.Ms;
        for (int k = 0; k < group; ++k) {
            const int64_t j = a.col[slot + (full || k < edges ? k : edges - 1)];
            rows[k] = es + j * n.Ms;
            /* The sums over the neighbours come next, when all of a batch are done. */
            prefetch(static_cast<const T*>(a.x) + j * n.C, n.C);
        }
        const Eight<T> w = weights<full>(slot, edges);
        const bool factored = !(a.flags & EQC_FS_STABLE);
        Eight<T> block[group], total{};
        if (n.Ms == group && factored) {
            products(own, rows, 0, block);
            total = sum(block);
            if (all_reach<T>(total, denominator_floor<T>)) return scale<with_q>(block, 1 / total, w, p, q);
        }
        total = Eight<T>{};
        for (int64_t m = 0; m < n.Ms; m += group) {
            products(own, rows, m, block);
            for (int k = 0; k < group; ++k) store8(p + (m + k) * group, block[k]);
            total += sum(block);
        }
        Eight<T> factor = 1 / total;
        if (!factored || !all_reach<T>(total, denominator_floor<T>)) own_edges(i, slot, edges, total, p, factor);
        for (int64_t m = 0; m < n.Ms; m += group) {
            for (int k = 0; k < group; ++k) block[k] = load8(p + (m + k) * group);
            scale<with_q>(block, factor, w, p + m * group, q + (with_q ? m * group : 0));
        }
    }

    /* By matrix, of eight matrices from m on, for eight edges. */
    EQC_INLINE void products(const T* own, const T* const* rows, int64_t m, Eight<T> (&block)[group]) const {
        const Eight<T> left = load8(own + m);
        for (int k = 0; k < group; ++k) block[k] = left * load8(rows[k] + m);
        transpose(block);
    }

    template <bool with_q>
    EQC_INLINE void scale(const Eight<T> (&block)[group], Eight<T> factor, Eight<T> w, T* p, T* q) const {
        const Eight<T> both = factor * w;
        for (int k = 0; k < group; ++k) {
            if (with_q) store8<T>(q + k * group, block[k] * factor);
            store8<T>(p + k * group, block[k] * both);
        }
    }

    /* Replaces the lanes whose total is too small. */
    __attribute__((noinline)) void own_edges(int64_t i, int64_t slot, int edges, const Eight<T>& total, T* p,
                                             Eight<T>& scale) const {
        for (int k = 0; k < edges; ++k) {
            if (!(a.flags & EQC_FS_STABLE) && total[k] >= denominator_floor<T>) continue;
            edge(i, a.col[slot + k], p + k);
            scale[k] = 1;
        }
    }

    template <bool full>
    EQC_INLINE Eight<T> weights(int64_t slot, int edges) const {
        const T* values = static_cast<const T*>(a.values);
        if (full && !a.edge_of_slot) return load8(values + slot);
        Eight<T> w;
        for (int k = 0; k < group; ++k) {
            const int64_t place = slot + (full || k < edges ? k : edges - 1);
            w[k] = values[a.edge_of_slot ? a.edge_of_slot[place] : place];
        }
        return w;
    }
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
