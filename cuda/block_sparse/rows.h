/* Sums over taps of rows times matrices,
 *
 *   y[site] = bias + sum over taps t of x[row(site, t)] · w[t],
 *
 * the heart of every convolution at a list of sites. Several sites at a time have all their sums in registers; rows are
 * read where they are, so nothing is gathered and nothing is padded. A sum's terms are always added in the order of
 * taps and channels: results depend neither on tiles nor on threads.
 */
#ifndef EQC_BLOCK_SPARSE_ROWS_H
#define EQC_BLOCK_SPARSE_ROWS_H

#include "../common/arena.h"
#include "../common/parallel.h"
#include "../common/tiles.h"

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
/* All groups divide it, as do the matrix unit's 32 sites. */
constexpr int64_t site_quantum = 96;

/* Matrices w[tap] [channels, columns] as strips of whole vectors, [strip, tap, channel, column of the strip], 0 beyond
 * the columns.
 *
 * Where columns would leave half of a vector empty, a vector holds half as many of them, each for two channels in turn:
 * it is multiplied with the two numbers of a row, over and over, and a column's sum is that of two neighbours. */
template <class T>
struct Strips {
    static constexpr int lanes = Vector<T>::lanes;
    static constexpr bool foldable = sizeof(T) == 4 && lanes == 16;
    int64_t taps, channels, columns;
    int fold; /* channels in a vector: 1 or 2 */
    int64_t vectors, strips;
    T* data = nullptr;

    Strips(int64_t taps, int64_t channels, int64_t columns)
        : taps(taps),
          channels(channels),
          columns(columns),
          fold(foldable && channels % 2 == 0 && columns > 0 && (columns - 1) % lanes < lanes / 2 ? 2 : 1),
          vectors((columns * fold + lanes - 1) / lanes),
          strips((vectors + most_vectors - 1) / most_vectors) {}

    int64_t count() const { return vectors * lanes * taps * (channels / fold); }
    int64_t first_vector(int64_t strip) const { return vectors * strip / strips; }
    int64_t first_column(int64_t strip) const { return first_vector(strip) * lanes / fold; }
    int width(int64_t strip) const { return int(first_vector(strip + 1) - first_vector(strip)); }
    /* Numbers of a tap in a strip. */
    int64_t tap_numbers(int64_t strip) const { return width(strip) * lanes * (channels / fold); }
    T* at(int64_t strip, int64_t tap) const {
        return data + first_vector(strip) * taps * lanes * (channels / fold) + tap * tap_numbers(strip);
    }

    /* From w [taps, channels, columns] or, when `turned`, [taps, columns, channels]. */
    void pack(int threads, const T* w, bool turned) const {
        parallel_for(count() < 16384 ? 1 : threads, strips * taps, [&](int64_t item, int) {
            const int64_t strip = item / taps, tap = item % taps, start = first_column(strip);
            const int64_t step = width(strip) * lanes, some = smaller(step / fold, columns - start);
            const T* from = w + tap * channels * columns + (turned ? start * channels : start);
            const int64_t channel_step = turned ? 1 : columns, column_step = turned ? channels : 1;
            T* to = at(strip, tap);
            if (some < step / fold) std::memset(to, 0, size_t(tap_numbers(strip)) * sizeof(T));
            if (turned && fold == 1) return transpose_matrix<T>(some, channels, from, channels, to, step);
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t j = 0; j < some; ++j)
                    to[c / fold * step + j * fold + c % fold] = from[c * channel_step + j * column_step];
        });
    }
    /* The matrices, as they were before `pack`. */
    void unpack(T* to) const {
        for (int64_t strip = 0; strip < strips; ++strip) {
            const int64_t start = first_column(strip), step = width(strip) * lanes;
            const int64_t some = smaller(step / fold, columns - start);
            for (int64_t tap = 0; tap < taps; ++tap)
                for (int64_t c = 0; c < channels; ++c) {
                    const T* from = at(strip, tap) + c / fold * step + c % fold;
                    T* row = to + (tap * channels + c) * columns + start;
                    for (int64_t j = 0; j < some; ++j) row[j] = from[j * fold];
                }
        }
    }
    /* A row of `columns` numbers, NULL for zeros, as the vectors of a sum. */
    void spread(const T* row, T* to) const {
        for (int64_t k = 0; k < vectors * lanes; ++k)
            to[k] = row && k % fold == 0 && k / fold < columns ? row[k / fold] : T(0);
    }
};

/* `F` numbers over and over. */
template <class T, int F>
EQC_INLINE typename Vector<T>::type repeat(const T* p) {
    if constexpr (F == 1) {
        return *p - typename Vector<T>::type{}; /* adding 0 would change -0 */
    } else {
        int64_t both;
        std::memcpy(&both, p, sizeof both);
        return reinterpret_cast<typename Vector<T>::type>(typename Lanes<int64_t, Vector<T>::lanes / 2>::type{} + both);
    }
}

/* What a tile of sites is multiplied with and where sums go. */
template <class T>
struct RowsProblem {
    const T* x;       /* rows of `channels` numbers */
    const T* missing; /* the row where there is none */
    const T* bias;    /* of whole vectors */
    T* y;             /* rows of w.columns */
    const T* plus;    /* NULL, or rows of it that are added to those of y */
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
    RowsProduct(int64_t taps, int64_t channels, int64_t columns, int64_t most_sites, Arena& arena, int threads);
    void pack(const T* given, bool turned, const T* bias);
    /* Sites of a tile such that all threads have work; no result depends on it. */
    int64_t tile_sites(int64_t sites) const;

    /* Where sums come from and go to: rows of x, `missing` (NULL: zeros) where there is none, and rows of y, to which
     * rows of `plus`, unless it is NULL, are added. */
    struct Places {
        const T *x, *missing;
        T* y;
        const T* plus;
        bool relu;
    };

    /* Sites [first, first + count) of a list, whose rows of y are out[first + i] or, if it is NULL, first + i.
     * fill(rows, step) sets the rows [taps, step] of x, -1 for none, and returns how many there are. */
    template <class Fill>
    void tile(int thread, const Places& to, const int32_t* out, int64_t first, int64_t count, const Fill& fill) const {
        RowsTile t = begin(thread, out, first, count);
        sum(thread, to, t, fill(t.rows, t.step));
    }

    Strips<T> w;

   private:
    RowsTile begin(int thread, const int32_t* out, int64_t first, int64_t count) const;
    void sum(int thread, const Places& to, RowsTile& t, int64_t pairs) const;

#if defined(EQC_ISA_AMX)
    int64_t unit_width() const { return padded(w.columns, pair_side); }
    int64_t blocks() const { return RightTiles::blocks(w.channels); }
    /* Taps whose left factors are in the first-level cache together. */
    int64_t taps_at_once() const { return smaller(w.taps, blocks() >= 4 ? 1 : 4 / blocks()); }
    RightTiles right(int64_t tap, int64_t column) const {
        return {right_ + (tap * unit_width() + column) / pair_side * RightTiles::count(w.channels)};
    }
    void take_for_unit(Arena& arena);
    void pack_for_unit(const T* given, bool turned, const T* bias) const;
    void tile_on_unit(const RowsProblem<T>& p, const RowsTile& t, T* sums, int thread) const;
#endif

    int64_t most_sites_;
    int threads_;
    bool on_unit_;
    int64_t left_step_ = 0;
    uint32_t *left_ = nullptr, *right_ = nullptr;
    int64_t index_step_, sum_step_;
    T *bias_, *zeros_, *sums_;
    int32_t* indices_;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
