/* Neighbours of sites, on the CPU.
 *
 * A cell is a batch entry and a place in the extents, numbered in row-major order, so the order of the numbers is that
 * of the coordinates. Where there are not many more cells than sites, all of them have a place in memory; otherwise
 * those that are needed are hashed.
 *
 * All of it is integers one at a time: wide vectors gain nothing, so the portable build has it alone.
 */
#if !defined(EQC_ISA_AVX512) && !defined(EQC_ISA_AVX2)
#include <algorithm>
#include <numeric>

#include "bit_rows.h"
#include "lookup.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

constexpr int most_axes = 4;

/* The product, or as much as a number can hold. */
EQC_INLINE int64_t bounded_product(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

/* Cells of `axes` axes after the batch. */
template <int axes>
struct Grid {
    int64_t batch;
    int64_t extent[axes + 1], step[axes + 1]; /* step: between the numbers of neighbours along an axis */
    int64_t per_entry, cells;

    Grid(int64_t batch, const int64_t* extents) : batch(batch), per_entry(1) {
        for (int d = axes; d-- > 0;) {
            extent[d] = extents[d];
            step[d] = per_entry;
            per_entry *= extents[d];
        }
        cells = batch * per_entry;
    }
    /* Whether a row (batch, coordinates) is inside. */
    EQC_INLINE bool holds(const int32_t* row) const {
        bool inside = row[0] >= 0 && row[0] < batch;
        for (int d = 0; d < axes; ++d) inside &= row[1 + d] >= 0 && row[1 + d] < extent[d];
        return inside;
    }
    EQC_INLINE int64_t cell(const int32_t* row) const {
        int64_t cell = row[0] * per_entry;
        for (int d = 0; d < axes; ++d) cell += row[1 + d] * step[d];
        return cell;
    }
    void coordinates(int64_t cell, int32_t* row) const {
        row[0] = int32_t(cell / per_entry);
        cell -= row[0] * per_entry;
        for (int d = 0; d < axes; ++d) {
            row[1 + d] = int32_t(cell / step[d]);
            cell -= row[1 + d] * step[d];
        }
    }
};

struct Geometry {
    int axes;
    int64_t in[most_axes], out[most_axes], kernel[most_axes], stride[most_axes], pad[most_axes], dilation[most_axes];
    int64_t taps = 1;

    explicit Geometry(const eqc_neighbours& a)
        : axes(int(a.axes)),
          in{a.extent_0, a.extent_1, a.extent_2, a.extent_3},
          out{a.out_extent_0, a.out_extent_1, a.out_extent_2, a.out_extent_3},
          kernel{a.kernel_0, a.kernel_1, a.kernel_2, a.kernel_3},
          stride{a.stride_0, a.stride_1, a.stride_2, a.stride_3},
          pad{a.pad_0, a.pad_1, a.pad_2, a.pad_3},
          dilation{a.dilation_0, a.dilation_1, a.dilation_2, a.dilation_3} {
        for (int d = 0; d < axes; ++d) taps = bounded_product(taps, kernel[d]);
    }
};

/* Whether memory for all cells is worth it for so many look-ups. */
EQC_INLINE bool moderate(int64_t cells, int64_t most, int64_t lookups) {
    return cells <= most && cells / 8 <= 8192 + lookups;
}

template <int axes, class Map>
struct Table {
    const eqc_neighbours& a;
    Geometry g;
    Grid<axes> in;
    int threads;
    Map map;
    /* Where all cells are in memory, they are few. */
    using Offset = std::conditional_t<std::is_same_v<Map, DenseMap>, int32_t, int64_t>;
    Offset* offset; /* [taps] from the cell of a kernel's first tap to the tap's; of use where both are inside */
    int32_t* place; /* [taps, axes] */

    Table(const eqc_neighbours& arguments, int64_t most, Arena& arena)
        : a(arguments),
          g(a),
          in(a.batch, g.in),
          threads(thread_count(a.threads, larger(a.rows, a.out_rows))),
          map(most, arena),
          offset(arena.take<Offset>(g.taps)),
          place(arena.take<int32_t>(g.taps * axes)) {}

    void run() {
        insert_rows();
        for (int64_t tap = 0; tap < g.taps; ++tap) {
            uint64_t distance = 0;
            int64_t rest = tap;
            for (int d = axes; d-- > 0; rest /= g.kernel[d]) {
                const int64_t at = rest % g.kernel[d];
                distance += uint64_t(at * g.dilation[d]) * uint64_t(in.step[d]);
                place[tap * axes + d] = int32_t(at);
            }
            offset[tap] = Offset(distance);
        }
        const int64_t used = number_listed(a.out_count, a.out_rows), group = grouped(g.taps, 8192);
        parallel_for(threads, (a.out_rows + group - 1) / group, [&](int64_t item, int) {
            const int64_t end = smaller(a.out_rows, (item + 1) * group);
            int64_t i = item * group;
            for (; i < smaller(used, end); ++i) fill(a.out_coords + i * (1 + axes), a.table + i * g.taps);
            if (i < end) std::memset(a.table + i * g.taps, 0xff, size_t((end - i) * g.taps) * sizeof(int32_t));
        });
    }

    void insert_rows() const {
        constexpr int64_t piece = 4096;
        map.clear(threads);
        const int64_t rows = number_listed(a.count, a.rows);
        parallel_for(threads, (rows + piece - 1) / piece, [&](int64_t item, int) {
            for (int64_t i = item * piece; i < smaller(rows, (item + 1) * piece); ++i) {
                const int32_t* row = a.coords + i * (1 + axes);
                if (in.holds(row)) map.insert(in.cell(row), int32_t(i));
            }
        });
    }

    /* The neighbours of an output row. */
    EQC_INLINE void fill(const int32_t* row, int32_t* out) const {
        int64_t corner[axes], cell = row[0] * in.per_entry;
        bool present = row[0] >= 0 && row[0] < a.batch, inside = present;
        for (int d = 0; d < axes; ++d) {
            corner[d] = row[1 + d] * g.stride[d] - g.pad[d];
            inside &= corner[d] >= 0 && corner[d] + (g.kernel[d] - 1) * g.dilation[d] < g.in[d];
        }
        if (inside) {
            for (int d = 0; d < axes; ++d) cell += corner[d] * in.step[d];
            find_all(cell, out);
            return;
        }
        for (int64_t tap = 0; tap < g.taps; ++tap) {
            bool here = present;
            int64_t at = cell;
            for (int d = 0; d < axes && here; ++d) {
                const int64_t coordinate = corner[d] + place[tap * axes + d] * g.dilation[d];
                here = coordinate >= 0 && coordinate < g.in[d];
                if (here) at += coordinate * in.step[d];
            }
            out[tap] = here ? map.find(at) : -1;
        }
    }

    EQC_INLINE void find_all(int64_t cell, int32_t* out) const {
#if defined(EQC_ISA_AVX512)
        if constexpr (std::is_same_v<Map, DenseMap>) {
            /* Taps that are next to each other are next to each other in the map. */
            const int64_t line = g.kernel[axes - 1];
            if (g.dilation[axes - 1] == 1 && line > 1 && line <= 16) {
                const __mmask16 all = __mmask16(lowest(line));
                for (int64_t tap = 0; tap < g.taps; tap += line)
                    _mm512_mask_storeu_epi32(out + tap, all,
                                             _mm512_maskz_loadu_epi32(all, map.rows() + cell + offset[tap]));
                return;
            }
            for (int64_t tap = 0; tap < g.taps; tap += 16) {
                const __mmask16 some = __mmask16(lowest(smaller(16, g.taps - tap)));
                const __m512i cells = _mm512_maskz_loadu_epi32(some, offset + tap);
                const __m512i found = _mm512_mask_i32gather_epi32(cells, some, cells, map.rows() + cell, 4);
                _mm512_mask_storeu_epi32(out + tap, some, found);
            }
            return;
        }
#endif
        for (int64_t tap = 0; tap < g.taps; ++tap) map.prefetch(cell + offset[tap]);
        for (int64_t tap = 0; tap < g.taps; ++tap) out[tap] = map.find(cell + offset[tap]);
    }
};

/* Places first, first + step, ..., count of them, ascending. */
struct Progression {
    int64_t first, step, count;
};

/* The outputs t with t * stride - pad + o * dilation = coordinate for some tap o, along one axis. */
class Reach {
   public:
    Reach(const Geometry& g, int d)
        : out_(g.out[d]),
          kernel_(g.kernel[d]),
          stride_(g.stride[d]),
          pad_(g.pad[d]),
          dilation_(g.dilation[d]),
          taps_(stride_ / std::gcd(stride_, dilation_)),
          step_(dilation_ / std::gcd(stride_, dilation_)),
          spans_((kernel_ - 1) / taps_),
          longer_((kernel_ - 1) % taps_),
          shift_((stride_ & (stride_ - 1)) == 0 ? __builtin_ctzll(uint64_t(stride_)) : -1) {}

    /* One of `taps_` taps after each other reaches an output, and `step_` lies between two outputs. */
    EQC_INLINE Progression from(int64_t coordinate) const {
        int64_t scaled = coordinate + pad_, tap = 0, last = scaled;
        if (stride_ > 1) {
            while (tap < taps_ && tap < kernel_ && !divides(scaled)) ++tap, scaled -= dilation_;
            if (tap >= taps_ || tap >= kernel_) return {0, 1, 0};
            last = shift_ >= 0 ? scaled >> shift_ : scaled / stride_;
        }
        int64_t first = last - (tap <= longer_ ? spans_ : spans_ - 1) * step_;
        if (step_ == 1) {
            first = larger(first, 0), last = smaller(last, out_ - 1);
        } else {
            if (first < 0) first += (-first + step_ - 1) / step_ * step_;
            if (last >= out_) last -= (last - out_ + step_) / step_ * step_;
        }
        return {first, step_, first > last ? 0 : step_ == 1 ? last - first + 1 : (last - first) / step_ + 1};
    }

   private:
    EQC_INLINE bool divides(int64_t n) const { return shift_ >= 0 ? (n & (stride_ - 1)) == 0 : n % stride_ == 0; }

    int64_t out_, kernel_, stride_, pad_, dilation_, taps_, step_;
    int64_t spans_, longer_; /* steps from the first output to the last: one more for the first taps */
    int shift_;              /* of a stride that is a power of two */
};

/* Calls body(cell, step, count) for the outputs that input rows reach, a line along the last axis at a time. */
template <int axes, class Body>
inline void for_reached(const eqc_neighbours& a, const Geometry& g, const Grid<axes>& out, int threads,
                        const Body& body) {
    constexpr int64_t piece = 1024;
    const Grid<axes> in(a.batch, g.in);
    const Reach reach[most_axes] = {{g, 0}, {g, axes > 1 ? 1 : 0}, {g, axes > 2 ? 2 : 0}, {g, axes > 3 ? 3 : 0}};
    const int64_t rows = number_listed(a.count, a.rows);
    parallel_for(threads, (rows + piece - 1) / piece, [&](int64_t item, int) {
        for (int64_t i = item * piece; i < smaller(rows, (item + 1) * piece); ++i) {
            const int32_t* row = a.coords + i * (1 + axes);
            if (!in.holds(row)) continue;
            Progression at[axes];
            int64_t lines = 1;
            for (int d = 0; d < axes; ++d) {
                at[d] = reach[d].from(row[1 + d]);
                lines *= d < axes - 1 ? at[d].count : at[d].count > 0;
            }
            int64_t number[axes] = {};
            for (int64_t line = 0; line < lines; ++line) {
                int64_t cell = row[0] * out.per_entry;
                for (int d = 0; d < axes; ++d) cell += (at[d].first + number[d] * at[d].step) * out.step[d];
                body(cell, at[axes - 1].step, at[axes - 1].count);
                for (int d = axes - 1; d-- > 0 && ++number[d] == at[d].count;) number[d] = 0;
            }
        }
    });
}

/* Outputs as bits, where there are not many more cells than outputs. */
template <int axes>
struct MarkedOutputs {
    static constexpr int64_t line = 4096;
    const eqc_neighbours& a;
    Geometry g;
    Grid<axes> out;
    int threads;
    BitRows bits; /* all cells, in rows of one length */

    MarkedOutputs(const eqc_neighbours& arguments, Arena& arena)
        : a(arguments),
          g(a),
          out(a.batch, g.out),
          threads(thread_count(a.threads, larger(a.rows, 1))),
          bits((out.cells + line - 1) / line, line, arena) {}

    int64_t find() const {
        parallel_for(threads, bits.rows, [&](int64_t i, int) {
            std::memset(bits.row(i), 0, size_t(bits.words) * sizeof(uint64_t));
        });
        for_reached(a, g, out, threads, [&](int64_t cell, int64_t step, int64_t count) EQC_INLINE_LAMBDA {
            const bool run = step == 1 && count < 64;
            for (int64_t k = 0; k < count; k += run ? count : 1) {
                const int64_t first = cell + k * step;
                const uint64_t chosen = run ? lowest(count) : 1;
                mark(first / 64, chosen << first % 64);
                const uint64_t beyond = chosen >> 1 >> (63 - first % 64);
                if (beyond) mark(first / 64 + 1, beyond);
            }
        });
        parallel_for(threads, bits.rows, [&](int64_t i, int) { bits.count(i); });
        return bits.add_up();
    }

    EQC_INLINE void mark(int64_t at, uint64_t chosen) const {
        uint64_t* word = bits.bits + at;
        const uint64_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
        if ((before & chosen) == chosen) return;
        if (threads == 1)
            *word = before | chosen;
        else
            __atomic_fetch_or(word, chosen, __ATOMIC_RELAXED);
    }

    void list() const {
        bits.for_rows(threads, [&](int64_t i, int64_t first, int64_t) {
            int32_t* to = a.made_coords + first * (1 + axes);
            for_bits(bits.row(i), bits.words, [&](int64_t k) EQC_INLINE_LAMBDA {
                out.coordinates(i * line + k, to);
                to += 1 + axes;
            });
        });
    }
};

/* Outputs as a set of numbers of cells. */
template <int axes>
struct HashedOutputs {
    const eqc_neighbours& a;
    Geometry g;
    Grid<axes> out;
    int threads;
    int64_t most; /* outputs that there can be */
    HashMap set;
    int64_t* cells; /* [most] */

    HashedOutputs(const eqc_neighbours& arguments, Arena& arena)
        : a(arguments),
          g(a),
          out(a.batch, g.out),
          threads(thread_count(a.threads, larger(a.rows, 1))),
          most(smaller(bounded_product(a.rows, g.taps), out.cells)),
          set(most, arena),
          cells(arena.take<int64_t>(most)) {}

    int64_t find() const {
        set.clear(threads);
        for_reached(a, g, out, threads, [&](int64_t cell, int64_t step, int64_t count) EQC_INLINE_LAMBDA {
            for (int64_t k = 0; k < count; ++k) set.insert(cell + k * step, 0);
        });
        int64_t count = 0;
        set.for_cells([&](int64_t cell) { cells[count++] = cell; });
        std::sort(cells, cells + count);
        return count;
    }

    void list() const {
        constexpr int64_t piece = 4096;
        parallel_for(threads, (*a.made_count + piece - 1) / piece, [&](int64_t item, int) {
            for (int64_t k = item * piece; k < smaller(*a.made_count, (item + 1) * piece); ++k)
                out.coordinates(cells[k], a.made_coords + k * (1 + axes));
        });
    }
};

constexpr int64_t largest_size = INT32_MAX;

bool wrong(const eqc_neighbours* a) {
    if (!a || a->axes < 1 || a->axes > most_axes || a->rows < 0 || a->out_rows < 0 || a->threads < 0) return true;
    if (a->batch < 0 || a->batch > largest_size || a->rows > largest_size || a->out_rows > largest_size) return true;
    const Geometry g(*a);
    for (int d = 0; d < g.axes; ++d) {
        if (g.in[d] < 0 || g.out[d] < 0 || g.kernel[d] < 1 || g.stride[d] < 1 || g.dilation[d] < 1) return true;
        if (g.in[d] > largest_size || g.out[d] > largest_size || g.kernel[d] > largest_size) return true;
        if (g.stride[d] > largest_size || g.dilation[d] > largest_size) return true;
        if (g.pad[d] > largest_size || g.pad[d] < -largest_size) return true;
    }
    return too_many(largest_size, g.kernel[0], g.axes > 1 ? g.kernel[1] : 1, g.axes > 2 ? g.kernel[2] : 1,
                    g.axes > 3 ? g.kernel[3] : 1);
}

/* Numbers of cells have 62 bits. */
bool too_large_grid(const eqc_neighbours& a, const int64_t* extent) {
    return too_many(int64_t(1) << 62, a.batch, extent[0], a.axes > 1 ? extent[1] : 1, a.axes > 2 ? extent[2] : 1,
                    a.axes > 3 ? extent[3] : 1);
}

/* What a set of outputs takes must be a size of memory. */
bool too_many_outputs(const eqc_neighbours& a) {
    const Geometry g(a);
    return too_large_grid(a, g.in) || too_large_grid(a, g.out) || bounded_product(a.rows, g.taps) > int64_t(1) << 48;
}

/* Calls body with the number of axes as a constant. */
template <class Body>
auto with_axes(int64_t axes, const Body& body) {
    switch (axes) {
        case 1: return body(std::integral_constant<int, 1>());
        case 2: return body(std::integral_constant<int, 2>());
        case 3: return body(std::integral_constant<int, 3>());
        default: return body(std::integral_constant<int, 4>());
    }
}

/* Calls body with what finds the outputs. */
template <class Body>
auto with_outputs(const eqc_neighbours& a, Arena& arena, const Body& body) {
    return with_axes(a.axes, [&](auto axes) {
        const Geometry g(a);
        const int64_t words = words_for(Grid<axes()>(a.batch, g.out).cells);
        if (moderate(words, most_cells / 8, bounded_product(a.rows, g.taps)))
            return body(MarkedOutputs<axes()>(a, arena));
        return body(HashedOutputs<axes()>(a, arena));
    });
}

size_t outputs_workspace(const eqc_neighbours* a) {
    if (wrong(a) || too_many_outputs(*a)) return 0;
    Arena arena(nullptr);
    return with_outputs(*a, arena, [&](const auto&) { return arena.used(); });
}
int make_outputs(const eqc_neighbours* a, void* workspace) {
    if (wrong(a) || !workspace || !a->made_count || (a->rows > 0 && !a->coords)) return EQC_BAD_ARGUMENT;
    if (a->out_rows > 0 && !a->made_coords) return EQC_BAD_ARGUMENT;
    if (too_many_outputs(*a)) return EQC_UNSUPPORTED;
    Arena arena(workspace);
    return with_outputs(*a, arena, [&](const auto& outputs) -> int {
        const int64_t count = outputs.find();
        *a->made_count = count > a->out_rows ? 0 : int32_t(count);
        if (count > a->out_rows) return EQC_BAD_ARGUMENT;
        outputs.list();
        return EQC_OK;
    });
}

/* Calls body with what fills the table. */
template <class Body>
auto with_table(const eqc_neighbours& a, Arena& arena, const Body& body) {
    return with_axes(a.axes, [&](auto axes) {
        const Geometry g(a);
        const int64_t cells = Grid<axes()>(a.batch, g.in).cells;
        if (moderate(cells, most_cells, bounded_product(a.out_rows, g.taps)))
            return body(Table<axes(), DenseMap>(a, cells, arena));
        return body(Table<axes(), HashMap>(a, a.rows, arena));
    });
}

bool wrong_table(const eqc_neighbours* a) {
    return wrong(a) || too_many(most_numbers, a->out_rows, Geometry(*a).taps);
}

size_t table_workspace(const eqc_neighbours* a) {
    if (wrong_table(a) || too_large_grid(*a, Geometry(*a).in)) return 0;
    Arena arena(nullptr);
    return with_table(*a, arena, [&](const auto&) { return arena.used(); });
}
int make_table(const eqc_neighbours* a, void* workspace) {
    if (wrong_table(a) || !workspace || (a->rows > 0 && !a->coords)) return EQC_BAD_ARGUMENT;
    if (a->out_rows > 0 && (!a->out_coords || !a->table)) return EQC_BAD_ARGUMENT;
    if (too_large_grid(*a, Geometry(*a).in)) return EQC_UNSUPPORTED;
    Arena arena(workspace);
    return with_table(*a, arena, [&](auto&& table) -> int {
        table.run();
        return EQC_OK;
    });
}

/* No real number takes part. */
template <class T>
size_t site_outputs_workspace(const eqc_neighbours* a) {
    return outputs_workspace(a);
}
template <class T>
int site_outputs(const eqc_neighbours* a, void* workspace) {
    return make_outputs(a, workspace);
}
template <class T>
size_t site_table_workspace(const eqc_neighbours* a) {
    return table_workspace(a);
}
template <class T>
int site_table(const eqc_neighbours* a, void* workspace) {
    return make_table(a, workspace);
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE_ONCE(site_outputs, eqc_neighbours, eqc::site_outputs)
EQC_DEFINE_ONCE(site_table, eqc_neighbours, eqc::site_table)
#endif
