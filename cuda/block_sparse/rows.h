/* Sums over taps of rows times matrices,
 *
 *   y[site] = bias + sum over taps t of x[row(site, t)] · w[t],
 *
 * the heart of every convolution at a list of sites. Several sites at a time have all their sums in registers; rows are
 * read where they are, so nothing is gathered and nothing is padded. A sum's terms are always added in the order of taps
 * and channels: results depend neither on tiles nor on threads.
 */
#ifndef EQC_BLOCK_SPARSE_ROWS_H
#define EQC_BLOCK_SPARSE_ROWS_H

#include "../common/arena.h"
#include "../common/parallel.h"

namespace eqc {
inline namespace EQC_ISA {

/* Vectors of columns that are summed at once, and how many sites fill the registers beside them. */
#if defined(EQC_ISA_AVX512)
constexpr int most_vectors = 4;
constexpr int group_sites(int vectors) { return vectors <= 2 ? 12 : vectors == 3 ? 8 : 6; }
#else
constexpr int most_vectors = 3;
constexpr int group_sites(int vectors) { return vectors == 1 ? 8 : vectors == 2 ? 6 : 4; }
#endif
/* All groups divide it. */
constexpr int64_t site_quantum = 24;

/* Matrices w[tap] [channels, columns] as strips of whole vectors of columns, [strip, tap, channel, column of the strip],
 * 0 beyond the columns. */
template <class T>
struct Strips {
    static constexpr int lanes = Vector<T>::lanes;
    int64_t taps, channels, columns, vectors, strips;
    T* data = nullptr;

    Strips(int64_t taps, int64_t channels, int64_t columns)
        : taps(taps),
          channels(channels),
          columns(columns),
          vectors((columns + lanes - 1) / lanes),
          strips((vectors + most_vectors - 1) / most_vectors) {}

    int64_t count() const { return vectors * lanes * taps * channels; }
    int64_t first_vector(int64_t strip) const { return vectors * strip / strips; }
    int width(int64_t strip) const { return int(first_vector(strip + 1) - first_vector(strip)); }
    T* at(int64_t strip, int64_t tap) const {
        return data + (first_vector(strip) * taps + tap * width(strip)) * lanes * channels;
    }

    /* From w [taps, channels, columns] or, when `turned`, [taps, columns, channels]. */
    void pack(int threads, const T* w, bool turned) const {
        parallel_for(count() < 16384 ? 1 : threads, strips * taps, [&](int64_t item, int) {
            const int64_t strip = item / taps, tap = item % taps, step = width(strip) * lanes;
            const int64_t start = first_vector(strip) * lanes, some = smaller(step, columns - start);
            const T* from = w + tap * channels * columns;
            T* to = at(strip, tap);
            if (turned && some < step) std::memset(to, 0, size_t(step * channels) * sizeof(T));
            if (turned) return transpose_matrix<T>(some, channels, from + start * channels, channels, to, step);
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t j = 0; j < step; ++j) to[c * step + j] = j < some ? from[c * columns + start + j] : T(0);
        });
    }
};

/* What a tile of sites is multiplied with and where sums go. */
template <class T>
struct RowsProblem {
    const T* x;       /* rows of `channels` numbers */
    const T* missing; /* the row where there is none */
    const T* bias;       /* of whole vectors */
    T* y;                /* rows of w.columns */
    bool relu;
};

/* The rows that the sites of a tile read. */
struct RowsTile {
    int64_t count; /* sites */
    int64_t step;  /* entries from tap to tap; whole quanta, -1 behind the sites */
    int32_t* rows; /* [taps, step] */
    int64_t* offsets; /* [taps, step] bytes from x to the row */
    bool gaps;        /* a tap that no site of a group has is left out */
    const int32_t* out; /* [count] rows of y; NULL: first + i */
    int64_t first;
    /* When few of the rows exist: of each tap those that do, and the sites that read them. */
    bool sparse;
    int32_t* readers; /* [taps, step]; otherwise [step] of 0, 1, ... */
    int32_t* pairs;   /* [taps] */

    int64_t out_row(int64_t i) const { return out ? out[i] : first + i; }
};

template <class T>
class RowsProduct {
   public:
    /* Tiles have at most `most_sites`, whole quanta. */
    RowsProduct(int64_t taps, int64_t channels, int64_t columns, int64_t most_sites, Arena& arena, int threads)
        : w(taps, channels, columns), most_sites_(most_sites), threads_(threads) {
        w.data = arena.take<T>(w.count());
        bias_ = arena.take<T>(w.vectors * Vector<T>::lanes);
        zeros_ = arena.take<T>(channels);
        index_step_ = padded((4 * most_sites + 1) * taps, 16);
        sum_step_ = padded((most_sites + 1) * most_vectors * Vector<T>::lanes, 16);
        indices_ = arena.take<int32_t>(threads * index_step_);
        sums_ = arena.take<T>(threads * sum_step_);
    }

    void pack(const T* given, bool turned, const T* bias) {
        w.pack(threads_, given, turned);
        for (int64_t k = 0; k < w.vectors * Vector<T>::lanes; ++k) bias_[k] = bias && k < w.columns ? bias[k] : T(0);
        for (int64_t c = 0; c < w.channels; ++c) zeros_[c] = 0;
    }
    const T* zeros() const { return zeros_; }

    /* Sites of a tile such that all threads have work; no result depends on it. */
    int64_t tile_sites(int64_t sites) const {
        const int64_t even = padded(sites / (threads_ * 8) + 1, site_quantum);
        return smaller(most_sites_, even);
    }

    /* y of sites [first, first + count) of a list, whose rows of y are out[first + i]. fill(tile) sets the rows, and
     * returns how many there are. */
    template <class Fill>
    void tile(int thread, const T* x, const T* missing, bool relu, T* y, const int32_t* out, int64_t first,
              int64_t count, const Fill& fill) const {
        const int64_t step = padded(count, site_quantum);
        int32_t* indices = indices_ + thread * index_step_;
        const int64_t room = w.taps * most_sites_;
        RowsTile t{count,
                   step,
                   indices + 2 * room,
                   reinterpret_cast<int64_t*>(indices),
                   false,
                   out ? out + first : nullptr,
                   first,
                   false,
                   indices + 3 * room,
                   indices + 4 * room};
        const int64_t pairs = fill(t.rows, step);
        const RowsProblem<T> p{x, missing ? missing : zeros_, bias_, y, relu};
        t.sparse = !missing && w.taps > 1 && pairs * 4 < count * w.taps * 3;
        t.gaps = !missing && pairs < count * w.taps;
        for (int64_t i = 0; i < step && !t.sparse; ++i) t.readers[i] = int32_t(i);
        for (int64_t k = 0; k < w.taps; ++k) {
            const int64_t used = t.sparse ? gather_pairs(t, k) : count, end = padded(used, site_quantum);
            for (int64_t i = used; i < end; ++i) t.rows[k * step + i] = -1;
            set_offsets(p, end, t.rows + k * step, t.offsets + k * step);
        }
        for (int64_t strip = 0; strip < w.strips; ++strip) {
            T* sums = sums_ + thread * sum_step_;
            switch (w.width(strip)) {
                case 1: strip_of<1>(p, t, strip, sums); break;
                case 2: strip_of<2>(p, t, strip, sums); break;
                case 3: strip_of<3>(p, t, strip, sums); break;
                default: strip_of<most_vectors>(p, t, strip, sums);
            }
        }
    }

    Strips<T> w;

   private:
    using vector = typename Vector<T>::type;
    static constexpr int lanes = Vector<T>::lanes;
    /* Weights that stay in the first-level cache while all sites of a tile pass. */
    static constexpr int64_t slice = 20480 / sizeof(T);

    /* Leaves out the missing rows of a tap. The last group is filled up with a site behind those of the tile. */
    static int64_t gather_pairs(const RowsTile& t, int64_t tap) {
        int32_t *rows = t.rows + tap * t.step, *readers = t.readers + tap * t.step;
        int64_t used = 0;
        for (int64_t i = 0; i < t.count; ++i) {
            const int32_t row = rows[i];
            rows[used] = row;
            readers[used] = int32_t(i);
            used += row >= 0;
        }
        for (int64_t i = used; i < padded(used, site_quantum); ++i) readers[i] = int32_t(t.step);
        t.pairs[tap] = int32_t(used);
        return used;
    }

    void set_offsets(const RowsProblem<T>& p, int64_t count, const int32_t* rows, int64_t* offsets) const {
        const int64_t to_missing = reinterpret_cast<const char*>(p.missing) - reinterpret_cast<const char*>(p.x);
        const uint64_t bytes = uint32_t(w.channels * int64_t(sizeof(T)));
        for (int64_t i = 0; i < count; ++i)
            offsets[i] = rows[i] < 0 ? to_missing : int64_t(uint64_t(uint32_t(rows[i])) * bytes);
    }

    struct Sweep {
        const T* x;
        const int64_t* offsets; /* [taps, step] */
        const int32_t* rows;    /* the same; NULL: no tap is missing for all */
        const int32_t* readers;
        int64_t step, taps, inner, tap_numbers;
        const T* right;
        T* sums;
    };

    /* Adds some taps and channels to the sums of P sites. A function of its own, as the registers just suffice. */
    template <int V, int P>
    static __attribute__((noinline)) void add(const Sweep& a, int64_t first) {
        constexpr int64_t width = V * lanes;
        vector sum[P][V];
        for (int i = 0; i < P; ++i)
            for (int j = 0; j < V; ++j) sum[i][j] = load(a.sums + a.readers[first + i] * width + j * lanes);
        for (int64_t tap = 0; tap < a.taps; ++tap) {
            const int64_t at = tap * a.step + first;
            if (a.rows) {
                int32_t all = -1;
                for (int i = 0; i < P; ++i) all &= a.rows[at + i];
                if (all == -1) continue;
            }
            const T* row[P];
            for (int i = 0; i < P; ++i)
                row[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(a.x) + a.offsets[at + i]);
            const T* right = a.right + tap * a.tap_numbers;
            for (int64_t k = 0; k < a.inner; ++k, right += width) {
                vector columns[V];
                for (int j = 0; j < V; ++j) columns[j] = load(right + j * lanes);
                for (int i = 0; i < P; ++i)
                    for (int j = 0; j < V; ++j) sum[i][j] += row[i][k] * columns[j];
            }
        }
        for (int i = 0; i < P; ++i)
            for (int j = 0; j < V; ++j) store(a.sums + a.readers[first + i] * width + j * lanes, sum[i][j]);
    }

    template <int V>
    void strip_of(const RowsProblem<T>& p, const RowsTile& t, int64_t strip, T* sums) const {
        constexpr int P = group_sites(V);
        constexpr int64_t width = V * lanes;
        const T* bias = p.bias + w.first_vector(strip) * lanes;
        for (int64_t i = 0; i <= t.step; ++i)
            for (int j = 0; j < V; ++j) store(sums + i * width + j * lanes, load(bias + j * lanes));
        const int64_t tap_numbers = w.channels * width;
        const int64_t pieces = (tap_numbers + slice - 1) / slice, piece = pieces ? (w.channels + pieces - 1) / pieces : 0;
        const int64_t taps = t.sparse || pieces > 1 ? 1 : pieces ? slice / tap_numbers : w.taps;
        for (int64_t k = 0; k < w.taps; k += taps)
            for (int64_t c = 0; c < w.channels; c += piece) {
                const Sweep sweep{p.x + c,
                                  t.offsets + k * t.step,
                                  t.gaps && !t.sparse ? t.rows + k * t.step : nullptr,
                                  t.readers + (t.sparse ? k * t.step : 0),
                                  t.step,
                                  smaller(taps, w.taps - k),
                                  smaller(piece, w.channels - c),
                                  tap_numbers,
                                  w.at(strip, k) + c * width,
                                  sums};
                const int64_t count = t.sparse ? t.pairs[k] : t.count;
                for (int64_t i = 0; i < count; i += P) add<V, P>(sweep, i);
            }
        const int64_t start = w.first_vector(strip) * lanes;
        const int last = int(smaller(w.columns - start - (V - 1) * lanes, lanes));
        for (int64_t i = 0; i < t.count; ++i) {
            vector sum[V];
            for (int j = 0; j < V; ++j) {
                sum[j] = load(sums + i * width + j * lanes);
                if (p.relu) sum[j] = sum[j] < 0 ? vector{} : sum[j];
            }
            T* to = p.y + t.out_row(i) * w.columns + start;
            if (last == lanes)
                store_row<T, V, true>(to, last, sum, false);
            else
                store_row<T, V, false>(to, last, sum, false);
        }
    }

    int64_t most_sites_;
    int threads_;
    int64_t index_step_, sum_step_;
    T *bias_, *zeros_, *sums_;
    int32_t* indices_;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
