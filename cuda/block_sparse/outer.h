/* Sums over sites of products of the rows that they read with rows of a cotangent,
 *
 *   dw[t] = sum over sites of x[row(site, t)]^T g[site],   db = sum over sites of g[site].
 *
 * A piece of dw stays in registers while rows pass. Sites are cut into chunks whatever the number of threads; a chunk
 * has sums of its own, which are added in the order of the chunks. Sums lie as weights do (Strips).
 */
#ifndef EQC_BLOCK_SPARSE_OUTER_H
#define EQC_BLOCK_SPARSE_OUTER_H

#include "rows.h"

namespace eqc {
inline namespace EQC_ISA {

template <class T>
class OuterRows {
   public:
    OuterRows(int64_t taps, int64_t channels, int64_t filters, Arena& arena, int threads, bool matrices)
        : w(taps, channels, filters), filters_(filters), numbers_(matrices ? w.count() : 0) {
        sum_step_ = padded(numbers_ + filters, 16);
        index_step_ = padded(most_part * (taps + 4), 16);
        g_step_ = w.vectors * lanes * most_part;
        sums_ = arena.take<T>(threads * sum_step_);
        w.data = arena.take<T>(threads ? numbers_ : 0);
        indices_ = arena.take<int32_t>(threads * index_step_);
        g_ = arena.take<T>(numbers_ ? threads * g_step_ : 0);
    }

    /* Sites that are worked on at once: their rows stay in the first-level cache, but few of them may have a tap. */
    static int64_t part(bool few) { return few ? most_part : most_part / 2; }
    static int64_t chunk(int64_t sites, int64_t part) {
        const int64_t parts = (sites + part - 1) / part;
        return part * (parts < 16 ? 1 : parts < 128 ? (parts + 15) / 16 : 8);
    }

    void clear(T* db) const {
        for (int64_t k = 0; k < numbers_; ++k) w.data[k] = 0;
        for (int64_t k = 0; db && k < filters_; ++k) db[k] = 0;
    }
    void begin(int thread) const {
        T* sums = sums_ + thread * sum_step_;
        for (int64_t k = 0; k < sum_step_; ++k) sums[k] = 0;
    }
    void end(int thread, T* db) const {
        const T* sums = sums_ + thread * sum_step_;
        for (int64_t k = 0; k < numbers_; ++k) w.data[k] += sums[k];
        for (int64_t k = 0; db && k < filters_; ++k) db[k] += sums[numbers_ + k];
    }
    void finish(T* dw) const { w.unpack(dw); }

    /* Adds `count` sites, whose cotangents are rows g_rows[i] of g or, if that is NULL, first + i. fill(rows, step)
     * sets the rows that they read. */
    template <class Fill>
    void add(int thread, int64_t count, const T* x, const T* g, const int32_t* g_rows, int64_t first,
             const Fill& fill) const {
        T *sums = sums_ + thread * sum_step_, *db = sums + numbers_, *copies = g_ + thread * g_step_;
        const int64_t width = w.vectors * lanes;
        for (int64_t i = 0; i < count; ++i) {
            const T* row = g + (g_rows ? g_rows[i] : first + i) * filters_;
            for (int64_t k = 0; k < filters_; ++k) db[k] += row[k];
            if (numbers_ == 0) continue;
            T* copy = copies + i * width;
            if (w.fold == 2)
                for (int64_t k = 0; k < filters_; ++k) copy[2 * k] = copy[2 * k + 1] = row[k];
            else
                for (int64_t k = 0; k < filters_; ++k) copy[k] = row[k];
            for (int64_t k = filters_ * w.fold; k < width; ++k) copy[k] = 0;
        }
        if (numbers_ == 0) return;
        int32_t* rows = indices_ + thread * index_step_;
        int64_t* x_bytes = reinterpret_cast<int64_t*>(rows + most_part * w.taps);
        int64_t* g_bytes = x_bytes + most_part;
        fill(rows, most_part);
        for (int64_t t = 0; t < w.taps; ++t) {
            int64_t pairs = 0;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t row = rows[t * most_part + i];
                x_bytes[pairs] = row * w.channels * int64_t(sizeof(T));
                g_bytes[pairs] = i * width * int64_t(sizeof(T));
                pairs += row >= 0;
            }
            if (pairs) tap({x, copies, x_bytes, g_bytes, pairs}, t, sums);
        }
    }

   private:
    static constexpr int64_t most_part = 192;
    static constexpr int lanes = Vector<T>::lanes;
    using vector = typename Vector<T>::type;

    struct Pairs {
        const T *x, *g;
        const int64_t *x_bytes, *g_bytes;
        int64_t count;
    };

    static EQC_INLINE const T* at(const T* base, int64_t bytes) {
        return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + bytes);
    }

    void tap(const Pairs& pairs, int64_t t, T* sums) const {
        for (int64_t strip = 0; strip < w.strips; ++strip) {
            Pairs some = pairs;
            some.g += w.first_vector(strip) * lanes;
            T* to = sums + (w.at(strip, t) - w.data);
            switch (w.width(strip)) {
                case 1: strip_of<1>(some, to); break;
                case 2: strip_of<2>(some, to); break;
                case 3: strip_of<3>(some, to); break;
                default: strip_of<most_vectors>(some, to);
            }
        }
    }

    template <int V>
    void strip_of(const Pairs& pairs, T* to) const {
        if constexpr (Strips<T>::foldable)
            if (w.fold == 2) return channels<2, V>(pairs, to);
        channels<1, V>(pairs, to);
    }

    template <int F, int V>
    void channels(Pairs pairs, T* to) const {
        constexpr int R = group_sites(V);
        int64_t left = w.channels / F;
        const auto pieces = [&](auto rows) EQC_INLINE_LAMBDA {
            for (; left >= rows(); left -= rows(), pairs.x += rows() * F, to += rows() * V * lanes)
                piece<F, V, rows()>(pairs, to);
        };
        pieces(std::integral_constant<int, R>());
        pieces(std::integral_constant<int, (R > 4 ? 4 : 1)>());
        pieces(std::integral_constant<int, 1>());
    }

    /* R rows of the sums, V vectors each. */
    template <int F, int V, int R>
    static __attribute__((noinline)) void piece(const Pairs& pairs, T* to) {
        vector sum[R][V];
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < V; ++j) sum[r][j] = load(to + (r * V + j) * lanes);
        for (int64_t k = 0; k < pairs.count; ++k) {
            const T *x = at(pairs.x, pairs.x_bytes[k]), *g = at(pairs.g, pairs.g_bytes[k]);
            vector right[V];
            for (int j = 0; j < V; ++j) right[j] = load(g + j * lanes);
            for (int r = 0; r < R; ++r) {
                const vector left = repeat<T, F>(x + r * F);
                for (int j = 0; j < V; ++j) sum[r][j] += left * right[j];
            }
        }
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < V; ++j) store(to + (r * V + j) * lanes, sum[r][j]);
    }

    Strips<T> w;
    int64_t filters_, numbers_;
    int64_t sum_step_, index_step_, g_step_;
    T *sums_, *g_;
    int32_t* indices_;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
