/* Fused feature-steered convolution on the CPU; compiled once for each instruction set, chosen when it is called.
 *
 * Forward: the factors exp(a_i - max) of all rows and exp(s_j - max) of all columns are made first (two tables of V·M
 * numbers, all that there is between x and y). Then tiles of centres: softmax of the edges, z_i = sum_e w q x in
 * registers, and y = z·W + b from the tile, which never leaves the second-level cache.
 * Backward: the same tiles with dz = dy·W^T. What edges add to their columns, and everything that follows from it, goes
 * into buffers of the chunk of rows; chunks are added up in their order, so results are bitwise the same for any number
 * of threads.
 */
#include "feature_steered.h"

#include <algorithm>

#include "../common/right_factor.h"
#include "assignment.h"
#include "sweeps.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

template <class T>
void clear(void* array, int64_t count) {
    if (array && count) std::memset(array, 0, size_t(count) * sizeof(T));
}

template <class T>
EQC_INLINE void accumulate(void* array, const T* part, int64_t count) {
    T* sum = static_cast<T*>(array);
    if (sum)
        for (int64_t k = 0; k < count; ++k) sum[k] += part[k];
}

template <class T>
void finish(const Arguments& a, T* y) {
    const T* b = static_cast<const T*>(a.b);
    for (int64_t d = 0; d < a.outputs; ++d) y[d] += b[d];
    if (a.flags & EQC_FS_RELU)
        for (int64_t d = 0; d < a.outputs; ++d) y[d] = y[d] < 0 ? T(0) : y[d];
}

template <class T>
struct Forward {
    const Arguments& a;
    Sizes<T> n;
    Arena arena;
    int threads;
    int64_t double_step, weights_room, step;
    bool first;
    Assignment<T> assign;
    RightFactor<T> w;
    double* double_room;
    T *room, *h, *wide, *packed;
    Span* spans;

    Forward(const Arguments& arguments, void* workspace)
        : a(arguments),
          n(arguments),
          arena(workspace),
          threads(thread_count(a.threads, a.chunks)),
          double_step(padded(Assignment<T>::scratch(n), 8)),
          first(a.flags & EQC_FS_FIRST),
          assign(arguments, arena),
          w(first ? block_rows : n.tile, first ? n.C : n.K, first ? n.M * n.D : n.D) {
        weights_room = padded(n.batch * group * n.Ms, 16);
        step = weights_room + (first ? 0 : n.tile * n.Zs);
        packed = arena.template take<T>(w.count());
        wide = first ? arena.template take<T>(n.K * n.D) : nullptr;
        double_room = arena.template take<double>(threads * double_step);
        room = arena.template take<T>(threads * step);
        spans = arena.template take<Span>(threads * n.batch);
        h = first ? arena.template take<T>(a.cols * n.M * n.D) : nullptr;
    }

    void run() {
        assign.pack();
        const T* given = static_cast<const T*>(a.w);
        if (first) {
            for (int64_t m = 0; m < n.M; ++m)
                for (int64_t c = 0; c < n.C; ++c)
                    std::memcpy(wide + (c * n.M + m) * n.D, given + (m * n.C + c) * n.D, size_t(n.D) * sizeof(T));
            w.pack(packed, [&](int64_t c) { return wide + c * n.M * n.D; });
        } else {
            w.pack(packed, [&](int64_t k) { return given + k * n.D; });
        }
        assign.vertices(threads, double_room, double_step);
        if (first) transform();
        parallel_for(threads, a.chunks, [&](int64_t chunk, int thread) {
            for (int64_t i = a.chunk_rows[chunk]; i < a.chunk_rows[chunk + 1]; i += n.tile)
                tile(i, smaller(n.tile, a.chunk_rows[chunk + 1] - i), thread);
        });
    }

    /* h = x·[W_1 ... W_M] at every column. */
    void transform() {
        parallel_for(threads, (a.cols + block_rows - 1) / block_rows, [&](int64_t block, int) {
            const int64_t start = block * block_rows, rows = smaller(block_rows, a.cols - start);
            w.times(rows, static_cast<const T*>(a.x) + start * n.C, n.C, h + start * n.M * n.D, n.M * n.D);
        });
    }

    void tile(int64_t start, int64_t rows, int thread) {
        T *p = room + thread * step, *z = p + weights_room;
        T* y = static_cast<T*>(a.y) + start * n.D;
        const T* x = static_cast<const T*>(a.x);
        if (first) clear<T>(y, rows * n.D);
        for (int64_t i = 0; i < rows && !first; ++i)
            if (a.rowptr[start + i] == a.rowptr[start + i + 1]) clear<T>(z + i * n.Zs, n.K);
        for_batches<T>(a, n, start, rows, spans + thread * n.batch, [&](const Span* span, int64_t count) {
            for (const Span* s = span; s < span + count; ++s)
                assign.template softmax<false>(s->row, s->slot, s->count, p + s->place * n.Ms * group, nullptr);
            for (const Span* s = span; s < span + count; ++s) {
                const Grouped<T> weights{p + s->place * n.Ms * group, n.Ms};
                const int32_t* col = a.col + s->slot;
                const int64_t i = s->row - start;
                if (first)
                    gather_transformed<T>(n.M, n.D, weights, col, h, s->count, y + i * n.D);
                else
                    gather<T>(n.M, n.C, weights, [&](int64_t k) EQC_INLINE_LAMBDA { return x + int64_t(col[k]) * n.C; },
                              s->count, z + i * n.Zs, !s->first);
            }
        });
        if (!first) w.times(rows, z, n.Zs, y, n.D);
        for (int64_t i = 0; i < rows; ++i) finish(a, y + i * n.D);
    }
};

template <class T>
struct Backward {
    const Arguments& a;
    Sizes<T> n;
    Arena arena;
    int threads;
    int64_t double_step, step = 0, most_touched = 0;
    bool shared, edges_wanted, columns_wanted;
    Assignment<T> assign;
    RightFactor<T> wt; /* [D, K] */
    OuterSum<T> outer; /* dW */
    double* double_room;
    T *room, *packed, *turned_w, *ut, *vt, *dut, *dvt, *dw;
    Span* spans;
    unsigned char* summed; /* [cols] whether a chunk has added to the column's dx, which holds nothing before */

    Backward(const Arguments& arguments, void* workspace)
        : a(arguments),
          n(arguments),
          arena(workspace),
          threads(thread_count(a.threads, a.chunks)),
          shared(a.centre == a.x),
          assign(a, arena),
          wt(n.tile, n.D, n.K),
          outer(n.tile, n.K, n.D) {
        columns_wanted = a.dx || a.dv;
        edges_wanted = columns_wanted || a.dcentre || a.dvalues || a.du || a.dc;
        for (int64_t chunk = 0; columns_wanted && chunk < a.chunks; ++chunk)
            most_touched = std::max(most_touched, a.touched_start[chunk + 1] - a.touched_start[chunk]);
        double_step = padded(Assignment<T>::scratch(n), 8);
        Room(*this, nullptr, &step);
        double_room = arena.template take<double>(threads * double_step);
        room = arena.template take<T>(threads * step);
        packed = arena.template take<T>(wt.count());
        turned_w = arena.template take<T>(n.K * n.D);
        dw = arena.template take<T>(n.K * n.D);
        ut = arena.template take<T>(n.K);
        vt = arena.template take<T>(n.K);
        dut = arena.template take<T>(n.K);
        dvt = arena.template take<T>(n.K);
        spans = arena.template take<Span>(threads * n.batch);
        summed = arena.template take<unsigned char>(a.dx ? a.cols : 0);
    }

    /* What a thread works in; from dx on, a chunk's own sums. */
    struct Room {
        T *q, *p, *g, *by_matrix, *z, *dz, *turned, *dy, *da, *factors;
        T *dx, *ds, *dw, *db, *dut, *dvt, *dc;
        Room(const Backward& o, T* base, int64_t* total = nullptr) {
            const Sizes<T>& n = o.n;
            int64_t used = 0;
            const auto take = [&](int64_t count) {
                T* piece = base ? base + used : nullptr;
                used += padded(count, 16);
                return piece;
            };
            q = take(n.batch * group * n.Ms);
            p = take(n.batch * group * n.Ms);
            g = take(n.batch * group * n.Ms);
            by_matrix = take(group * n.Ms);
            z = take(n.tile * n.Zs);
            dz = take(n.tile * n.Zs);
            turned = take(Turned<T>::count(n));
            dy = take(n.tile * n.D);
            da = take(n.tile * n.Ms);
            factors = take(o.outer.scratch());
            dx = take(o.most_touched * n.C);
            ds = take(o.most_touched * n.Ms);
            dw = take(n.K * n.D);
            db = take(n.D);
            dut = take(n.K);
            dvt = take(n.K);
            dc = take(n.Ms);
            if (total) *total = used;
        }
    };

    void run() {
        assign.pack();
        assign.vertices(threads, double_room, double_step);
        const T *w = static_cast<const T*>(a.w), *u = static_cast<const T*>(a.u), *v = static_cast<const T*>(a.v);
        transpose_matrix<T>(n.K, n.D, w, n.D, turned_w, n.K);
        wt.pack(packed, [&](int64_t d) { return turned_w + d * n.K; });
        transpose_matrix<T>(n.C, n.M, u, n.M, ut, n.C);
        transpose_matrix<T>(n.C, n.M, v, n.M, vt, n.C);
        clear<unsigned char>(summed, a.dx ? a.cols : 0);
        if (a.given_edges > a.edges) clear<T>(a.dvalues, a.given_edges);
        clear<T>(dw, n.K * n.D);
        clear<T>(a.db, n.D);
        clear<T>(a.dc, n.M);
        clear<T>(dut, n.K);
        clear<T>(dvt, n.K);
        Turnstile turn;
        parallel_for(threads, a.chunks, [&](int64_t chunk, int thread) { this->chunk(chunk, thread, turn); });
        for (int64_t j = 0; a.dx && j < a.cols; ++j)
            if (!summed[j]) clear<T>(static_cast<T*>(a.dx) + j * n.C, n.C);
        if (a.dw) outer.finish(dw, static_cast<T*>(a.dw));
        if (a.du) transpose_matrix<T>(n.M, n.C, dut, n.C, static_cast<T*>(a.du), n.M);
        if (a.dv) transpose_matrix<T>(n.M, n.C, dvt, n.C, static_cast<T*>(a.dv), n.M);
    }

    void chunk(int64_t chunk, int thread, Turnstile& turn) {
        const Room r(*this, room + thread * step);
        const int64_t first = a.chunk_rows[chunk], last = a.chunk_rows[chunk + 1];
        const int64_t touched = columns_wanted ? a.touched_start[chunk + 1] - a.touched_start[chunk] : 0;
        const int32_t* columns = a.touched + (columns_wanted ? a.touched_start[chunk] : 0);
        /* Where the chunk's own rows are among the columns, when centre i is column i. */
        const int64_t own = shared && a.dx ? std::lower_bound(columns, columns + touched, first) - columns : 0;
        clear<T>(r.dx, a.dx ? touched * n.C : 0);
        clear<T>(r.ds, touched * n.Ms);
        clear<T>(r.dw, a.dw ? n.K * n.D : 0);
        clear<T>(r.db, n.D);
        clear<T>(r.dut, n.K);
        clear<T>(r.dc, n.Ms);
        for (int64_t i = first; i < last; i += n.tile)
            tile(i, smaller(n.tile, last - i), thread, r, r.dx + (own + i - first) * n.C);
        if (a.dx) product<T>(touched, n.C, n.M, r.ds, n.Ms, 1, vt, n.C, r.dx, n.C, true);
        if (a.dv) {
            const T* x = static_cast<const T*>(a.x);
            gather<T>(
                n.M, n.C, Plain<T>{r.ds, n.Ms},
                [&](int64_t k) EQC_INLINE_LAMBDA { return x + int64_t(columns[k]) * n.C; }, touched, r.dvt, false);
        }
        turn.wait_for(chunk);
        accumulate(a.dw ? dw : nullptr, r.dw, n.K * n.D);
        accumulate(a.db, r.db, n.D);
        accumulate(a.du ? dut : nullptr, r.dut, n.K);
        accumulate(a.dv ? dvt : nullptr, r.dvt, n.K);
        accumulate(a.dc, r.dc, n.M);
        for (int64_t k = 0; a.dx && k < touched; ++k) {
            T* sum = static_cast<T*>(a.dx) + int64_t(columns[k]) * n.C;
            const T* part = r.dx + k * n.C;
            if (summed[columns[k]]) {
                accumulate(sum, part, n.C);
            } else {
                std::copy(part, part + n.C, sum);
                summed[columns[k]] = 1;
            }
        }
        turn.done();
    }

    /* `own_dx`: the chunk's sums for the columns that the tile's rows are, when they are columns. */
    void tile(int64_t start, int64_t rows, int thread, const Room& r, T* own_dx) {
        const T *dy = static_cast<const T*>(a.dy) + start * n.D, *x = static_cast<const T*>(a.x);
        const T* centre = static_cast<const T*>(a.centre) + start * n.C;
        if (a.flags & EQC_FS_RELU) {
            const T* y = static_cast<const T*>(a.y) + start * n.D;
            for (int64_t k = 0; k < rows * n.D; ++k) r.dy[k] = y[k] > 0 ? dy[k] : T(0);
            dy = r.dy;
        }
        if (a.db)
            for (int64_t i = 0; i < rows; ++i) accumulate(r.db, dy + i * n.D, n.D);
        if (!edges_wanted && !a.dw) return;
        if (edges_wanted) wt.times(rows, dy, n.D, r.dz, n.Zs);
        clear<T>(r.da, rows * n.Ms);
        for (int64_t i = 0; i < rows && a.dw; ++i)
            if (a.rowptr[start + i] == a.rowptr[start + i + 1]) clear<T>(r.z + i * n.Zs, n.K);
        for_batches<T>(a, n, start, rows, spans + thread * n.batch, [&](const Span* span, int64_t count) {
            const Span* end = span + count;
            for (const Span* s = span; s < end; ++s) {
                const int64_t place = s->place * n.Ms * group;
                assign.template softmax<true>(s->row, s->slot, s->count, r.p + place, r.q + place);
            }
            for (const Span* s = span; s < end; ++s) {
                const int64_t i = s->row - start;
                const int32_t* col = a.col + s->slot;
                const auto neighbour = [&](int64_t k) EQC_INLINE_LAMBDA { return x + int64_t(col[k]) * n.C; };
                const Grouped<T> weights{r.p + s->place * n.Ms * group, n.Ms};
                if (a.dw) gather<T>(n.M, n.C, weights, neighbour, s->count, r.z + i * n.Zs, !s->first);
                if (!edges_wanted) continue;
                Turned<T>::turn(n, r.dz + i * n.Zs, r.turned);
                inner_products<T>(n, r.turned, neighbour, s->count, r.g + s->place * n.Ms * group);
            }
            if (!edges_wanted) return;
            for (const Span* s = span; s < end; ++s)
                for (int64_t k = 0; k < s->count; k += group) {
                    const int64_t place = (s->place * group + k) * n.Ms;
                    logits(s->slot + k, int(smaller(group, s->count - k)), r, r.p + place, r.q + place, r.g + place,
                           r.da + (s->row - start) * n.Ms);
                }
            if (!a.dx) return;
            for (const Span* s = span; s < end; ++s) {
                const int32_t* local = a.local + s->slot;
                scatter<T>(n.M, n.C, Grouped<T>{r.p + s->place * n.Ms * group, n.Ms}, r.dz + (s->row - start) * n.Zs,
                           s->count, [&](int64_t k) EQC_INLINE_LAMBDA { return r.dx + int64_t(local[k]) * n.C; });
            }
        });
        if (a.dw) outer.add(rows, r.z, n.Zs, dy, n.D, r.factors, r.dw);
        const auto own = [&](int64_t i) EQC_INLINE_LAMBDA { return centre + i * n.C; };
        if (a.du) gather<T>(n.M, n.C, Plain<T>{r.da, n.Ms}, own, rows, r.dut, true);
        for (int64_t i = 0; a.dc && i < rows; ++i) accumulate(r.dc, r.da + i * n.Ms, n.Ms);
        T* dcentre = shared ? (a.dx ? own_dx : nullptr) : static_cast<T*>(a.dcentre);
        if (dcentre)
            product<T>(rows, n.C, n.M, r.da, n.Ms, 1, ut, n.C, shared ? dcentre : dcentre + start * n.C, n.C, shared);
    }

    /* What the logits and weights of eight edges from `slot` on get, of the inner products `products` [edges, Ms]. */
    EQC_INLINE void logits(int64_t slot, int count, const Room& r, const T* p, const T* q, const T* products, T* da) {
        T* g = r.by_matrix;
        for (int64_t m = 0; m < n.Ms; m += group) {
            Eight<T> block[group];
            for (int k = 0; k < group; ++k) block[k] = load8(products + (k < count ? k : count - 1) * n.Ms + m);
            transpose(block);
            for (int k = 0; k < group; ++k) store8(g + (m + k) * group, block[k]);
        }
        /* Means are taken of what exceeds the likeliest matrix: in a saturated softmax all digits are in the
         * difference. */
        Eight<T> base = load8(g), most = load8(q), mean{};
        for (int64_t m = 1; m < n.M; ++m) {
            const Eight<T> here = load8(q + m * group);
            base = here > most ? load8(g + m * group) : base;
            most = here > most ? here : most;
        }
        for (int64_t m = 0; m < n.M; ++m) mean += load8(q + m * group) * (load8(g + m * group) - base);
        if (a.dvalues) {
            T* dvalues = static_cast<T*>(a.dvalues);
            const Eight<T> whole = mean + base;
            for (int k = 0; k < group; ++k)
                if (k < count) dvalues[a.edge_of_slot ? a.edge_of_slot[slot + k] : slot + k] = whole[k];
        }
        for (int64_t m = 0; m < n.Ms; m += group) {
            Eight<T> block[group], sum = load8(da + m);
            for (int k = 0; k < group; ++k)
                block[k] = load8(p + (m + k) * group) * ((load8(g + (m + k) * group) - base) - mean);
            transpose(block);
            for (int k = 0; k < group; ++k) {
                if (k >= count) break;
                sum += block[k];
                if (columns_wanted) {
                    T* ds = r.ds + int64_t(a.local[slot + k]) * n.Ms + m;
                    store8<T>(ds, load8(ds) + block[k]);
                }
            }
            store8(da + m, sum);
        }
    }
};

template <class T>
size_t forward_workspace(const Arguments* a) {
    return wrong(a) ? 0 : Forward<T>(*a, nullptr).arena.used();
}
template <class T>
size_t backward_workspace(const Arguments* a) {
    return wrong(a) || ((a->dx || a->dv) && !a->touched_start) ? 0 : Backward<T>(*a, nullptr).arena.used();
}
template <class T>
int forward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace || !a->b || (a->rows * a->outputs > 0 && !a->y)) return EQC_BAD_ARGUMENT;
    Forward<T>(*a, workspace).run();
    return EQC_OK;
}
template <class T>
int backward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace || (a->rows * a->outputs > 0 && !a->dy)) return EQC_BAD_ARGUMENT;
    if ((a->flags & EQC_FS_RELU) && a->rows * a->outputs > 0 && !a->y) return EQC_BAD_ARGUMENT;
    if ((a->dx || a->dv) && (!a->touched_start || (a->edges > 0 && (!a->touched || !a->local))))
        return EQC_BAD_ARGUMENT;
    if (a->centre == a->x && a->dcentre) return EQC_BAD_ARGUMENT;
    Backward<T>(*a, workspace).run();
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE_AMX(feature_steered_forward, eqc_feature_steered, eqc::forward)
EQC_DEFINE_AMX(feature_steered_backward, eqc_feature_steered, eqc::backward)
