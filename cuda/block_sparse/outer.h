/* Sums over sites of products of the rows that they read with rows of a cotangent,
 *
 *   dw[t] = sum over sites of x[row(site, t)]^T g[site],   db = sum over sites of g[site].
 *
 * A piece of dw stays in registers while rows pass. Sites are cut into chunks whatever the number of threads; a chunk has
 * sums of its own, which are added in the order of the chunks.
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
        : taps_(taps), channels_(channels), filters_(filters), numbers_(matrices ? taps * channels * filters : 0) {
        sum_step_ = padded(numbers_ + filters, 16);
        index_step_ = padded(most_part * (taps + 4), 16);
        sums_ = arena.take<T>(threads * sum_step_);
        indices_ = arena.take<int32_t>(threads * index_step_);
    }

    /* Sites that are worked on at once: their rows stay in the first-level cache, but few of them may have a tap. */
    static int64_t part(bool few) { return few ? most_part : most_part / 2; }
    static int64_t chunk(int64_t sites, int64_t part) {
        const int64_t parts = (sites + part - 1) / part;
        return part * (parts < 16 ? 1 : parts < 128 ? (parts + 15) / 16 : 8);
    }

    void clear(T* dw, T* db) const {
        if (dw) std::memset(dw, 0, size_t(numbers_) * sizeof(T));
        if (db && filters_) std::memset(db, 0, size_t(filters_) * sizeof(T));
    }
    void begin(int thread) const { std::memset(sums_ + thread * sum_step_, 0, size_t(sum_step_) * sizeof(T)); }
    void end(int thread, T* dw, T* db) const {
        const T* sums = sums_ + thread * sum_step_;
        if (dw)
            for (int64_t k = 0; k < numbers_; ++k) dw[k] += sums[k];
        if (db)
            for (int64_t k = 0; k < filters_; ++k) db[k] += sums[numbers_ + k];
    }

    /* Adds `count` sites, whose cotangents are rows g_rows[i] of g or, if that is NULL, first + i. fill(rows, step) sets
     * the rows that they read. */
    template <class Fill>
    void add(int thread, int64_t count, const T* x, const T* g, const int32_t* g_rows, int64_t first,
             const Fill& fill) const {
        T* sums = sums_ + thread * sum_step_;
        int32_t* rows = indices_ + thread * index_step_;
        int64_t* x_bytes = reinterpret_cast<int64_t*>(rows + most_part * taps_);
        int64_t* g_bytes = x_bytes + most_part;
        T* db = sums + numbers_;
        for (int64_t i = 0; i < count; ++i) {
            const T* row = g + (g_rows ? g_rows[i] : first + i) * filters_;
            for (int64_t k = 0; k < filters_; ++k) db[k] += row[k];
        }
        if (numbers_ == 0) return;
        fill(rows, most_part);
        for (int64_t t = 0; t < taps_; ++t) {
            int64_t pairs = 0;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t row = rows[t * most_part + i];
                x_bytes[pairs] = row * channels_ * int64_t(sizeof(T));
                g_bytes[pairs] = (g_rows ? g_rows[i] : first + i) * filters_ * int64_t(sizeof(T));
                pairs += row >= 0;
            }
            if (pairs) tap({x, g, x_bytes, g_bytes, pairs, filters_}, sums + t * channels_ * filters_);
        }
    }

   private:
    static constexpr int64_t most_part = 192;
    static constexpr int lanes = Vector<T>::lanes;
    using vector = typename Vector<T>::type;

    struct Pairs {
        const T *x, *g;
        const int64_t *x_bytes, *g_bytes;
        int64_t count, filters;
    };

    static EQC_INLINE const T* at(const T* base, int64_t bytes) {
        return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + bytes);
    }

    void tap(const Pairs& pairs, T* sum) const {
        const int64_t vectors = (filters_ + lanes - 1) / lanes, strips = (vectors + most_vectors - 1) / most_vectors;
        for (int64_t strip = 0; strip < strips; ++strip) {
            const int64_t begin = vectors * strip / strips, end = vectors * (strip + 1) / strips;
            Pairs some = pairs;
            some.g += begin * lanes;
            const int last = int(smaller(lanes, filters_ - (end - 1) * lanes));
            switch (end - begin) {
                case 1: strip_of<1>(some, last, sum + begin * lanes); break;
                case 2: strip_of<2>(some, last, sum + begin * lanes); break;
                case 3: strip_of<3>(some, last, sum + begin * lanes); break;
                default: strip_of<most_vectors>(some, last, sum + begin * lanes);
            }
        }
    }

    template <int V>
    void strip_of(const Pairs& pairs, int last, T* sum) const {
        if (last == lanes)
            channels<V, true>(pairs, last, sum);
        else
            channels<V, false>(pairs, last, sum);
    }

    template <int V, bool full>
    void channels(Pairs pairs, int last, T* sum) const {
        constexpr int R = group_sites(V);
        const T* x = pairs.x;
        int64_t c = 0;
        for (; c + R <= channels_; c += R) pairs.x = x + c, piece<V, R, full>(pairs, last, sum + c * filters_);
        for (; R > 4 && c + 4 <= channels_; c += 4) pairs.x = x + c, piece<V, 4, full>(pairs, last, sum + c * filters_);
        for (; c < channels_; ++c) pairs.x = x + c, piece<V, 1, full>(pairs, last, sum + c * filters_);
    }

    /* R channels of V vectors of columns. */
    template <int V, int R, bool full>
    static __attribute__((noinline)) void piece(const Pairs& pairs, int last, T* to) {
        vector sum[R][V];
        for (int r = 0; r < R; ++r) load_row<T, V, full>(to + r * pairs.filters, last, sum[r]);
        for (int64_t k = 0; k < pairs.count; ++k) {
            const T* x = at(pairs.x, pairs.x_bytes[k]);
            vector g[V];
            load_row<T, V, full>(at(pairs.g, pairs.g_bytes[k]), last, g);
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < V; ++j) sum[r][j] += x[r] * g[j];
        }
        for (int r = 0; r < R; ++r) store_row<T, V, full>(to + r * pairs.filters, last, sum[r], false);
    }

    int64_t taps_, channels_, filters_, numbers_;
    int64_t sum_step_, index_step_;
    T* sums_;
    int32_t* indices_;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
