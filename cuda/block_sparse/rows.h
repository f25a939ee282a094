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

/* Where the matrix unit is faster than vectors: rows are split for each tap, which many columns must make up for, and it
 * works on 32 channels and columns at once. */
template <class T>
inline bool unit_pays_for_rows(int64_t channels, int64_t columns) {
#if defined(EQC_ISA_AMX)
    return std::is_same<T, float>::value && channels >= 64 && columns >= 64 &&
           4 * channels * columns >= 3 * padded(channels, 32) * padded(columns, 32);
#else
    return (void)channels, (void)columns, false;
#endif
}

/* Matrices w[tap] [channels, columns] as strips of whole vectors, [strip, tap, channel, column of the strip], 0 beyond the
 * columns.
 *
 * Where columns would leave half of a vector empty, a vector holds half as many of them, each for two channels in turn:
 * it is multiplied with the two numbers of a row, over and over, and a column's sum is that of two neighbouring lanes. */
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

/* The sums of neighbouring lanes of two vectors. */
template <class V, size_t... I>
EQC_INLINE V fold_pair(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, int(2 * I)...) + __builtin_shufflevector(a, b, int(2 * I + 1)...);
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
    RowsProduct(int64_t taps, int64_t channels, int64_t columns, int64_t most_sites, Arena& arena, int threads)
        : w(taps, channels, columns),
          most_sites_(most_sites),
          threads_(threads),
          on_unit_(unit_pays_for_rows<T>(channels, columns)) {
        w.data = arena.take<T>(on_unit_ ? taps * channels * columns : w.count());
        bias_ = arena.take<T>(padded(w.vectors * Vector<T>::lanes, 32));
        zeros_ = arena.take<T>(channels);
        index_step_ = padded((4 * most_sites + 1) * taps, 16);
        sum_step_ = padded((most_sites + 1) * most_vectors * Vector<T>::lanes, 16);
        take_for_unit(arena);
        indices_ = arena.take<int32_t>(threads * index_step_);
        sums_ = arena.take<T>(threads * sum_step_);
    }

    void pack(const T* given, bool turned, const T* bias) {
        if (on_unit_) {
            pack_for_unit(given, turned, bias);
        } else {
            w.spread(bias, bias_);
            w.pack(threads_, given, turned);
        }
        for (int64_t c = 0; c < w.channels; ++c) zeros_[c] = 0;
    }
    /* Sites of a tile such that all threads have work; no result depends on it. */
    int64_t tile_sites(int64_t sites) const {
        const int64_t even = padded(sites / (threads_ * 8) + 1, on_unit_ ? 32 : 24);
        return smaller(most_sites_, even);
    }

    /* Where sums come from and go to: rows of x, `missing` (NULL: zeros) where there is none, and rows of y, to which rows
     * of `plus`, unless it is NULL, are added. */
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
        const RowsProblem<T> p{to.x, to.missing ? to.missing : zeros_, bias_, to.y, to.plus, to.relu};
        t.sparse = !to.missing && w.taps > 1 && pairs * 4 < count * w.taps * 3;
        t.gaps = !to.missing && pairs < count * w.taps;
        for (int64_t i = 0; i < step && !t.sparse; ++i) t.readers[i] = int32_t(i);
        for (int64_t k = 0; k < w.taps; ++k) {
            const int64_t used = t.sparse ? gather_pairs(t, k) : count, end = padded(used, site_quantum);
            for (int64_t i = used; i < end; ++i) t.rows[k * step + i] = -1;
            set_offsets(p, end, t.rows + k * step, t.offsets + k * step);
        }
        T* sums = sums_ + thread * sum_step_;
        if (on_unit_) return tile_on_unit(p, t, sums, thread);
        for (int64_t strip = 0; strip < w.strips; ++strip) {
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
    static constexpr int64_t slice = 28672 / sizeof(T);

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
        const T* from; /* sums before, a vector row for each reader or, with step 0, one for all */
        int64_t from_step;
        T* sums;
    };

    /* Where final sums go: rows of y. */
    struct Finish {
        T* y; /* NULL: they are not final */
        const T* plus;
        int64_t columns;
        int last;
        bool relu;
    };

    template <int F, int V>
    static EQC_INLINE void finish(const Finish& f, int64_t row, vector (&sum)[V]) {
        constexpr int W = (V + F - 1) / F;
        vector done[W];
        for (int j = 0; j < W; ++j) {
            if constexpr (F == 1)
                done[j] = sum[j];
            else
                done[j] = fold_pair(sum[2 * j], 2 * j + 1 < V ? sum[2 * j + 1] : vector{}, std::make_index_sequence<lanes>());
            if (f.relu) done[j] = done[j] < 0 ? vector{} : done[j];
        }
        if (f.plus) {
            vector more[W];
            load_row<T, W, false>(f.plus + row * f.columns, f.last, more);
            for (int j = 0; j < W; ++j) done[j] += more[j];
        }
        T* to = f.y + row * f.columns;
        if (f.last == lanes)
            store_row<T, W, true>(to, f.last, done, false);
        else
            store_row<T, W, false>(to, f.last, done, false);
    }

    /* Adds some taps and channels to the sums of P sites. A function of its own, as the registers just suffice. */
    template <int F, int V, int P>
    static __attribute__((noinline)) void add(const Sweep& a, int64_t first, const Finish& f, const RowsTile& t) {
        constexpr int64_t width = V * lanes;
        vector sum[P][V];
        for (int i = 0; i < P; ++i)
            for (int j = 0; j < V; ++j) sum[i][j] = load(a.from + a.readers[first + i] * a.from_step + j * lanes);
        for (int64_t tap = 0; tap < a.taps; ++tap) {
            const int64_t at = tap * a.step + first;
            if (a.rows) {
                int32_t all = -1;
                for (int i = 0; i < P; ++i) all &= a.rows[at + i];
                if (all == -1) continue;
            }
            const T* row[P];
            for (int i = 0; i < P; ++i) {
                row[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(a.x) + a.offsets[at + i]);
                prefetch(reinterpret_cast<const T*>(reinterpret_cast<const char*>(a.x) + a.offsets[at + P + i]), a.inner);
            }
            const T* right = a.right + tap * a.tap_numbers;
            for (int64_t k = 0; k < a.inner; k += F, right += width) {
                vector columns[V];
                for (int j = 0; j < V; ++j) columns[j] = load(right + j * lanes);
                for (int i = 0; i < P; ++i) {
                    const vector left = repeat<T, F>(row[i] + k);
                    for (int j = 0; j < V; ++j) sum[i][j] += left * columns[j];
                }
            }
        }
        for (int i = 0; i < P; ++i) {
            if (!f.y)
                for (int j = 0; j < V; ++j) store(a.sums + a.readers[first + i] * width + j * lanes, sum[i][j]);
            else if (first + i < t.count)
                finish<F, V>(f, t.out_row(first + i), sum[i]);
        }
    }

    template <int V>
    void strip_of(const RowsProblem<T>& p, const RowsTile& t, int64_t strip, T* sums) const {
        if constexpr (Strips<T>::foldable)
            if (w.fold == 2) return folded_strip<2, V>(p, t, strip, sums);
        folded_strip<1, V>(p, t, strip, sums);
    }

    template <int F, int V>
    void folded_strip(const RowsProblem<T>& p, const RowsTile& t, int64_t strip, T* sums) const {
        constexpr int P = group_sites(V), W = (V + F - 1) / F;
        constexpr int64_t width = V * lanes;
        const T* bias = p.bias + w.first_vector(strip) * lanes;
        for (int64_t i = 0; i <= t.step && t.sparse; ++i)
            for (int j = 0; j < V; ++j) store(sums + i * width + j * lanes, load(bias + j * lanes));
        const int64_t tap_numbers = w.tap_numbers(strip);
        const int64_t pieces = tap_numbers > slice ? (tap_numbers + slice - 1) / slice : 1;
        const int64_t piece = padded((w.channels + pieces - 1) / pieces, F);
        const int64_t taps = t.sparse || pieces > 1 ? 1 : tap_numbers ? slice / tap_numbers : w.taps;
        const int64_t start = w.first_column(strip), columns = smaller(w.columns - start, width / F);
        const Finish final{p.y + start, p.plus ? p.plus + start : nullptr, w.columns, int(columns - (W - 1) * lanes),
                           p.relu};
        bool begun = t.sparse;
        for (int64_t k = 0; k < w.taps; k += taps)
            for (int64_t c = 0; c == 0 || c < w.channels; c += piece) {
                const Sweep sweep{p.x + c,
                                  t.offsets + k * t.step,
                                  t.gaps && !t.sparse ? t.rows + k * t.step : nullptr,
                                  t.readers + (t.sparse ? k * t.step : 0),
                                  t.step,
                                  smaller(taps, w.taps - k),
                                  smaller(piece, w.channels - c),
                                  tap_numbers,
                                  w.at(strip, k) + c / F * width,
                                  begun ? sums : bias,
                                  begun ? width : 0,
                                  sums};
                const bool last = !t.sparse && k + taps >= w.taps && c + piece >= w.channels;
                const Finish to = last ? final : Finish{nullptr, nullptr, 0, 0, false};
                const int64_t count = t.sparse ? t.pairs[k] : t.count;
                for (int64_t i = 0; i < count; i += P) add<F, V, P>(sweep, i, to, t);
                begun = true;
                if (piece == 0) break;
            }
        for (int64_t i = 0; i < t.count && t.sparse; ++i) {
            vector sum[V];
            for (int j = 0; j < V; ++j) sum[j] = load(sums + i * width + j * lanes);
            finish<F, V>(final, t.out_row(i), sum);
        }
    }

#if defined(EQC_ISA_AMX)
    int64_t unit_width() const { return padded(w.columns, pair_side); }
    int64_t blocks() const { return RightTiles::blocks(w.channels); }
    /* Taps whose left factors are in the first-level cache together. */
    int64_t taps_at_once() const { return smaller(w.taps, blocks() >= 4 ? 1 : 4 / blocks()); }
    RightTiles right(int64_t tap, int64_t column) const {
        return {right_ + (tap * unit_width() + column) / pair_side * RightTiles::count(w.channels)};
    }

    void take_for_unit(Arena& arena) {
        if (!on_unit_) return;
        sum_step_ = (most_sites_ + pair_side) * unit_width();
        left_step_ = LeftTiles::count(blocks() * taps_at_once());
        right_ = arena.take<uint32_t>(w.taps * unit_width() / pair_side * RightTiles::count(w.channels));
        left_ = arena.take<uint32_t>(threads_ * left_step_);
    }

    void pack_for_unit(const T* given, bool turned, const T* bias) const {
        if constexpr (std::is_same<T, float>::value)
            parallel_for(threads_, w.taps, [&](int64_t tap, int) {
                const T* from = given + tap * w.channels * w.columns;
                if (turned) {
                    T* to = w.data + tap * w.channels * w.columns;
                    transpose_matrix<T>(w.columns, w.channels, from, w.channels, to, w.columns);
                    from = to;
                }
                for (int64_t n = 0; n < w.columns; n += pair_side)
                    right(tap, n).pack(w.channels, w.columns - n, [&](int64_t k) { return from + k * w.columns + n; });
            });
        for (int64_t k = 0; k < unit_width(); ++k) bias_[k] = bias && k < w.columns ? bias[k] : T(0);
    }

    void tile_on_unit(const RowsProblem<T>& p, const RowsTile& t, T* sums, int thread) const {
        if constexpr (std::is_same<T, float>::value) {
            const int64_t width = unit_width(), taps = t.sparse ? 1 : taps_at_once();
            T* gathered = sums + most_sites_ * width;
            const LeftTiles left(blocks() * taps_at_once(), left_ + thread * left_step_);
            MatrixUnit unit;
            for (int64_t i = 0; i < padded(t.count, pair_side); ++i)
                for (int64_t k = 0; k < width; k += lanes) store(sums + i * width + k, load(bias_ + k));
            for (int64_t k = 0; k < w.taps; k += taps) {
                const int64_t count = t.sparse ? t.pairs[k] : t.count;
                for (int64_t i = 0; i < count; i += pair_side) {
                    int64_t there[4], used = 0;
                    for (int64_t tap = k; tap < smaller(w.taps, k + taps); ++tap) {
                        const int64_t at = tap * t.step + i;
                        if (t.gaps && none(t.rows + at)) continue;
                        split_rows(p, t.offsets + at, left, used * blocks());
                        there[used++] = tap;
                    }
                    if (used == 0) continue;
                    const int32_t* readers = t.readers + k * t.step + i;
                    const int64_t some = smaller(pair_side, count - i);
                    T* to = t.sparse ? gathered : sums + i * width;
                    for (int64_t s = 0; s < some && t.sparse; ++s)
                        for (int64_t c = 0; c < width; c += lanes)
                            store(to + s * width + c, load(sums + readers[s] * width + c));
                    for (int64_t n = 0; n < w.columns; n += pair_side) {
                        unit.load(to + n, width, pair_side, pair_side);
                        for (int64_t tap = 0; tap < used; ++tap)
                            for (int64_t b = 0; b < blocks(); ++b)
                                unit.add(left, right(there[tap], n), tap * blocks() + b, b);
                        unit.store(to + n, width, pair_side, pair_side);
                    }
                    for (int64_t s = 0; s < some && t.sparse; ++s)
                        for (int64_t c = 0; c < width; c += lanes)
                            store(sums + readers[s] * width + c, load(to + s * width + c));
                }
            }
            for_columns<T>(w.columns, [&](int64_t at, auto V, auto full, int last) EQC_INLINE_LAMBDA {
                for (int64_t i = 0; i < t.count; ++i) {
                    vector sum[V()];
                    const int64_t to = t.out_row(i) * w.columns + at;
                    load_row<T, V(), true>(sums + i * width + at, lanes, sum);
                    if (p.relu)
                        for (int j = 0; j < V(); ++j) sum[j] = sum[j] < 0 ? vector{} : sum[j];
                    if (p.plus) {
                        vector more[V()];
                        load_row<T, V(), full()>(p.plus + to, last, more);
                        for (int j = 0; j < V(); ++j) sum[j] += more[j];
                    }
                    store_row<T, V(), full()>(p.y + to, last, sum, false);
                }
            });
        }
    }

    static EQC_INLINE bool none(const int32_t* rows) {
        int32_t all = -1;
        for (int i = 0; i < pair_side; ++i) all &= rows[i];
        return all == -1;
    }

    /* The rows of 32 sites as blocks from `block` on of the left factor. */
    EQC_INLINE void split_rows(const RowsProblem<float>& p, const int64_t* offsets, LeftTiles left, int64_t block) const {
        left.data += block * tile_side;
        for (int64_t i = 0; i < pair_side; ++i) {
            const auto row = [&](int64_t of) {
                return reinterpret_cast<const float*>(reinterpret_cast<const char*>(p.x) + offsets[of]);
            };
            prefetch(row(i + pair_side), w.channels);
            left.set_row(i, row(i), w.channels);
        }
    }
#else
    void take_for_unit(Arena&) {}
    void pack_for_unit(const T*, bool, const T*) const {}
    void tile_on_unit(const RowsProblem<T>&, const RowsTile&, T*, int) const {}
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
