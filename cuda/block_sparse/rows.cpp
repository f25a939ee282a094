/* Sums over taps of rows times matrices: by vector instructions or, where it pays, on the matrix unit. */
#include "rows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* Where the matrix unit is faster than vectors: rows are split for each tap, which many columns must make up for, and
 * it works on 32 channels and columns at once. */
template <class T>
bool unit_pays_for_rows(int64_t channels, int64_t columns) {
#if defined(EQC_ISA_AMX)
    return std::is_same<T, float>::value && channels >= 64 && columns >= 64 &&
           4 * channels * columns >= 3 * padded(channels, 32) * padded(columns, 32);
#else
    return (void)channels, (void)columns, false;
#endif
}

/* The sums of neighbouring lanes of two vectors. */
template <class V, size_t... I>
EQC_INLINE V fold_pair(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, int(2 * I)...) + __builtin_shufflevector(a, b, int(2 * I + 1)...);
}

template <class T>
EQC_INLINE const T* row_at(const T* x, int64_t bytes) {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(x) + bytes);
}

/* Leaves out the missing rows of a tap. The last group is filled up with a site behind those of the tile. */
int64_t gather_pairs(const RowsTile& t, int64_t tap) {
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

/* Bytes from x to each row. */
template <class T>
void set_offsets(const RowsProblem<T>& p, int64_t channels, int64_t count, const int32_t* rows, int64_t* offsets) {
    const int64_t to_missing = reinterpret_cast<const char*>(p.missing) - reinterpret_cast<const char*>(p.x);
    const uint64_t bytes = uint32_t(channels * int64_t(sizeof(T)));
    for (int64_t i = 0; i < count; ++i)
        offsets[i] = rows[i] < 0 ? to_missing : int64_t(uint64_t(uint32_t(rows[i])) * bytes);
}

template <class T>
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
template <class T>
struct Finish {
    T* y; /* NULL: they are not final */
    const T* plus;
    int64_t columns;
    int last;
    bool relu;
};

template <int F, int V, class T>
EQC_INLINE void finish(const Finish<T>& f, int64_t row, typename Vector<T>::type (&sum)[V]) {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
    constexpr int W = (V + F - 1) / F;
    vector done[W];
    for (int j = 0; j < W; ++j) {
        if constexpr (F == 1)
            done[j] = sum[j];
        else
            done[j] = fold_pair(sum[2 * j], 2 * j + 1 < V ? sum[2 * j + 1] : vector{},
                                std::make_index_sequence<lanes>());
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
template <int F, int V, int P, class T>
__attribute__((noinline)) void add(const Sweep<T>& a, int64_t first, const Finish<T>& f, const RowsTile& t) {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
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
            row[i] = row_at(a.x, a.offsets[at + i]);
            prefetch(row_at(a.x, a.offsets[at + P + i]), a.inner);
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

/* The sums of a strip of the columns at all sites of a tile. */
template <int F, int V, class T>
void strip_of(const Strips<T>& w, const RowsProblem<T>& p, const RowsTile& t, int64_t strip, T* sums) {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
    /* Weights that stay in the first-level cache while all sites of a tile pass. */
    constexpr int64_t slice = 28672 / sizeof(T);
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
    const Finish<T> final{p.y + start, p.plus ? p.plus + start : nullptr, w.columns,
                          int(columns - (W - 1) * lanes), p.relu};
    bool begun = t.sparse;
    for (int64_t k = 0; k < w.taps; k += taps)
        for (int64_t c = 0; c == 0 || c < w.channels; c += piece) {
            const Sweep<T> sweep{p.x + c,
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
            const Finish<T> to = last ? final : Finish<T>{nullptr, nullptr, 0, 0, false};
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

template <int F, class T>
void any_strip(const Strips<T>& w, const RowsProblem<T>& p, const RowsTile& t, int64_t strip, T* sums) {
    switch (w.width(strip)) {
        case 1: return strip_of<F, 1>(w, p, t, strip, sums);
        case 2: return strip_of<F, 2>(w, p, t, strip, sums);
        case 3: return strip_of<F, 3>(w, p, t, strip, sums);
        default: return strip_of<F, most_vectors>(w, p, t, strip, sums);
    }
}

#if defined(EQC_ISA_AMX)
EQC_INLINE bool none(const int32_t* rows) {
    int32_t all = -1;
    for (int i = 0; i < pair_side; ++i) all &= rows[i];
    return all == -1;
}

/* The rows of 32 sites as blocks from `block` on of the left factor. */
EQC_INLINE void split_rows(const float* x, int64_t channels, const int64_t* offsets, LeftTiles left, int64_t block) {
    left.data += block * tile_side;
    for (int64_t i = 0; i < pair_side; ++i) {
        prefetch(row_at(x, offsets[i + pair_side]), channels);
        left.set_row(i, row_at(x, offsets[i]), channels);
    }
}
#endif

}  // namespace

template <class T>
RowsProduct<T>::RowsProduct(int64_t taps, int64_t channels, int64_t columns, int64_t most_sites, Arena& arena,
                            int threads)
    : w(taps, channels, columns),
      most_sites_(most_sites),
      threads_(threads),
      on_unit_(unit_pays_for_rows<T>(channels, columns)) {
    w.data = arena.take<T>(on_unit_ ? taps * channels * columns : w.count());
    bias_ = arena.take<T>(padded(w.vectors * Vector<T>::lanes, 32));
    zeros_ = arena.take<T>(channels);
    index_step_ = padded((4 * most_sites + 1) * taps, 16);
    sum_step_ = padded((most_sites + 1) * most_vectors * Vector<T>::lanes, 16);
#if defined(EQC_ISA_AMX)
    take_for_unit(arena);
#endif
    indices_ = arena.take<int32_t>(threads * index_step_);
    sums_ = arena.take<T>(threads * sum_step_);
}

template <class T>
void RowsProduct<T>::pack(const T* given, bool turned, const T* bias) {
    for (int64_t c = 0; c < w.channels; ++c) zeros_[c] = 0;
#if defined(EQC_ISA_AMX)
    if (on_unit_) return pack_for_unit(given, turned, bias);
#endif
    w.spread(bias, bias_);
    w.pack(threads_, given, turned);
}

template <class T>
int64_t RowsProduct<T>::tile_sites(int64_t sites) const {
    const int64_t even = padded(sites / (threads_ * 8) + 1, on_unit_ ? 32 : 24);
    return smaller(most_sites_, even);
}

template <class T>
RowsTile RowsProduct<T>::begin(int thread, const int32_t* out, int64_t first, int64_t count) const {
    int32_t* indices = indices_ + thread * index_step_;
    const int64_t room = w.taps * most_sites_;
    return {count,
            padded(count, site_quantum),
            indices + 2 * room,
            reinterpret_cast<int64_t*>(indices),
            false,
            out ? out + first : nullptr,
            first,
            false,
            indices + 3 * room,
            indices + 4 * room};
}

template <class T>
void RowsProduct<T>::sum(int thread, const Places& to, RowsTile& t, int64_t pairs) const {
    const RowsProblem<T> p{to.x, to.missing ? to.missing : zeros_, bias_, to.y, to.plus, to.relu};
    t.sparse = !to.missing && w.taps > 1 && pairs * 4 < t.count * w.taps * 3;
    t.gaps = !to.missing && pairs < t.count * w.taps;
    for (int64_t i = 0; i < t.step && !t.sparse; ++i) t.readers[i] = int32_t(i);
    for (int64_t k = 0; k < w.taps; ++k) {
        const int64_t used = t.sparse ? gather_pairs(t, k) : t.count, end = padded(used, site_quantum);
        for (int64_t i = used; i < end; ++i) t.rows[k * t.step + i] = -1;
        set_offsets(p, w.channels, end, t.rows + k * t.step, t.offsets + k * t.step);
    }
    T* sums = sums_ + thread * sum_step_;
#if defined(EQC_ISA_AMX)
    if (on_unit_) return tile_on_unit(p, t, sums, thread);
#endif
    for (int64_t strip = 0; strip < w.strips; ++strip) {
        if constexpr (Strips<T>::foldable)
            if (w.fold == 2) {
                any_strip<2>(w, p, t, strip, sums);
                continue;
            }
        any_strip<1>(w, p, t, strip, sums);
    }
}

#if defined(EQC_ISA_AMX)
template <class T>
void RowsProduct<T>::take_for_unit(Arena& arena) {
    if (!on_unit_) return;
    sum_step_ = (most_sites_ + pair_side) * unit_width();
    left_step_ = LeftTiles::count(blocks() * taps_at_once());
    right_ = arena.take<uint32_t>(w.taps * unit_width() / pair_side * RightTiles::count(w.channels));
    left_ = arena.take<uint32_t>(threads_ * left_step_);
}

template <class T>
void RowsProduct<T>::pack_for_unit(const T* given, bool turned, const T* bias) const {
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

template <class T>
void RowsProduct<T>::tile_on_unit(const RowsProblem<T>& p, const RowsTile& t, T* sums, int thread) const {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
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
                split_rows(p.x, w.channels, t.offsets + at, left, used * blocks());
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
#endif

template class RowsProduct<float>;
#if !defined(EQC_ISA_AMX)
template class RowsProduct<double>;
#endif

}  // namespace EQC_ISA
}  // namespace eqc
