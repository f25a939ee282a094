/* Fused feature-steered convolution on the CPU; compiled once for each instruction set, chosen when it is called.
 *
 * Forward: the factors exp(s_j - max) of all columns are made first (V·M numbers, the only array between x and y). Then
 * tiles of 32 centres: softmax of a row's edges, z_i = sum_e w q x in registers, and y = z·W + b from the tile, which
 * never leaves the second-level cache. Logits are summed in double and centred on a mean of x, so that an offset of the
 * features costs no digits.
 * Backward: the same tiles with dz = dy·W^T; what an edge adds to its column goes into a buffer of the chunk's columns,
 * and chunks are added up in their order, so results are bitwise the same for any number of threads.
 */
#include "feature_steered.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "../common/dense.h"
#include "../common/exponential.h"
#include "../common/parallel.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

using Arguments = eqc_feature_steered;

constexpr int64_t tile_rows = 32;
constexpr int64_t edge_step = 512; /* edges of a row that are in the scratch at a time */
constexpr int64_t block_rows = 1024;
constexpr int64_t sampled_rows = 1024;
constexpr int lanes8 = 8;

/* Below this the factored denominator has lost digits (float: 2^-40, double: 2^-330). */
template <class T>
constexpr T denominator_floor = sizeof(T) == 4 ? T(0x1p-40) : T(0x1p-330);

EQC_INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Hands out pieces of the workspace; with a null base it only adds up their sizes. */
class Arena {
   public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <class T>
    T* take(int64_t count) {
        char* piece = base_ ? base_ + used_ : nullptr;
        used_ += size_t(padded(count * int64_t(sizeof(T)), 64));
        return reinterpret_cast<T*>(piece);
    }
    size_t used() const { return used_; }

   private:
    char* base_;
    size_t used_ = 0;
};

template <class T>
struct Sizes {
    int64_t M, C, D, Ms, K;
    explicit Sizes(const Arguments& a)
        : M(a.matrices), C(a.channels), D(a.outputs), Ms(padded(a.matrices, lanes8)), K(a.matrices * a.channels) {}
};

/* What both passes need to turn features into assignments. */
template <class T>
struct Assignment {
    const Arguments& a;
    Sizes<T> n;
    double* mean;   /* [C] */
    double* u;      /* [C, Ms] */
    double* v;      /* [C, Ms] */
    double* offset; /* [Ms] c + (u + v)·mean */
    T* es;          /* [cols, Ms] exp(s - max s), 0 beyond M */

    Assignment(const Arguments& arguments, Arena& arena) : a(arguments), n(arguments) {
        mean = arena.take<double>(n.C);
        u = arena.take<double>(n.C * n.Ms);
        v = arena.take<double>(n.C * n.Ms);
        offset = arena.take<double>(n.Ms);
        es = arena.take<T>(a.cols * n.Ms);
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
        std::memset(u, 0, size_t(n.C * n.Ms) * sizeof(double));
        std::memset(v, 0, size_t(n.C * n.Ms) * sizeof(double));
        for (int64_t m = 0; m < n.Ms; ++m) offset[m] = m < n.M ? double(gc[m]) : 0;
        for (int64_t c = 0; c < n.C; ++c)
            for (int64_t m = 0; m < n.M; ++m) {
                u[c * n.Ms + m] = double(gu[c * n.M + m]);
                v[c * n.Ms + m] = double(gv[c * n.M + m]);
                offset[m] += (double(gu[c * n.M + m]) + double(gv[c * n.M + m])) * mean[c];
            }
    }

    static int64_t scratch(const Sizes<T>& n) { return tile_rows * (n.C + n.Ms); }

    /* exp(l - max l) of `rows` rows of features; `weights` is u or v, `add` is the offset or NULL. */
    void factors(const T* features, int64_t rows, const double* weights, const double* add, double* room, T* out) const {
        double *centred = room, *logits = room + tile_rows * n.C;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t c = 0; c < n.C; ++c) centred[i * n.C + c] = double(features[i * n.C + c]) - mean[c];
        product<double>(rows, n.Ms, n.C, centred, n.C, 1, weights, n.Ms, logits, n.Ms, false);
        for (int64_t i = 0; i < rows; ++i) {
            double* l = logits + i * n.Ms;
            if (add)
                for (int64_t m = 0; m < n.Ms; ++m) l[m] += add[m];
            double top = l[0];
            for (int64_t m = 1; m < n.M; ++m) top = l[m] > top ? l[m] : top;
            for (int64_t m = 0; m < n.M; ++m) out[i * n.Ms + m] = T(l[m] - top);
            for (int64_t m = n.M; m < n.Ms; ++m) out[i * n.Ms + m] = -std::numeric_limits<T>::infinity();
        }
        exponentials(out, rows * n.Ms);
    }

    void columns(int threads, double* room, int64_t room_step) const {
        parallel_for(threads, (a.cols + tile_rows - 1) / tile_rows, [&](int64_t tile, int thread) {
            const int64_t first = tile * tile_rows;
            factors(static_cast<const T*>(a.x) + first * n.C, smaller(tile_rows, a.cols - first), v, nullptr,
                    room + thread * room_step, es + first * n.Ms);
        });
    }

    /* One edge from its own logits, with its own maximum. */
    __attribute__((noinline)) void edge(int64_t i, int64_t j, T* q) const {
        const T *xi = static_cast<const T*>(a.centre) + i * n.C, *xj = static_cast<const T*>(a.x) + j * n.C;
        double total = 0, top = -std::numeric_limits<double>::infinity();
        const auto logit = [&](int64_t m) {
            double l = offset[m];
            for (int64_t c = 0; c < n.C; ++c)
                l += (double(xi[c]) - mean[c]) * u[c * n.Ms + m] + (double(xj[c]) - mean[c]) * v[c * n.Ms + m];
            return l;
        };
        for (int64_t m = 0; m < n.M; ++m) {
            const double l = logit(m);
            q[m] = T(l);
            top = l > top || l != l ? l : top;
        }
        for (int64_t m = 0; m < n.M; ++m) total += std::exp(logit(m) - top);
        for (int64_t m = 0; m < n.M; ++m) q[m] = T(std::exp(logit(m) - top) / total);
    }

    /* q [count, Ms] of the edges from slot `first` on of row i, whose factors are ea. */
    void softmax(int64_t i, const T* ea, int64_t first, int64_t count, T* q) const {
        typedef T eight __attribute__((vector_size(8 * sizeof(T)), aligned(sizeof(T)), may_alias));
        const bool from_logits = a.flags & EQC_FS_STABLE;
        for (int64_t e = 0; e < count; ++e) {
            const int64_t j = a.col[first + e];
            T* target = q + e * n.Ms;
            eight sum{};
            for (int64_t m = 0; m < n.Ms; m += lanes8) {
                const eight p = *reinterpret_cast<const eight*>(ea + m) * *reinterpret_cast<const eight*>(es + j * n.Ms + m);
                *reinterpret_cast<eight*>(target + m) = p;
                sum += p;
            }
            const T total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
            if (!from_logits && total >= denominator_floor<T>) {
                for (int64_t m = 0; m < n.Ms; m += lanes8) *reinterpret_cast<eight*>(target + m) /= total;
            } else {
                edge(i, j, target);
            }
        }
    }

    T weight(int64_t slot) const {
        return static_cast<const T*>(a.values)[a.edge_of_slot ? a.edge_of_slot[slot] : slot];
    }
};

/* out[m, :] (+)= sum_e p[e, m] rows[j_e, :] for MB matrices from m0 on; channels in blocks of two vectors. */
template <class T, int MB, int V>
EQC_INLINE void gather_block(const T* p, int64_t Ms, const int32_t* col, int64_t count, const T* x, int64_t C, int n, T* out,
                             bool add) {
    using vector = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
    vector sum[MB][V] = {};
    const int last = n - (V - 1) * lanes;
    if (last == lanes) {
        for (int64_t e = 0; e < count; ++e) {
            const T* row = x + int64_t(col[e]) * C;
            vector right[V];
            for (int k = 0; k < V; ++k) right[k] = load(row + k * lanes);
            for (int m = 0; m < MB; ++m)
                for (int k = 0; k < V; ++k) sum[m][k] += p[e * Ms + m] * right[k];
        }
    } else {
        for (int64_t e = 0; e < count; ++e) {
            const T* row = x + int64_t(col[e]) * C;
            vector right[V];
            for (int k = 0; k < V - 1; ++k) right[k] = load(row + k * lanes);
            right[V - 1] = load_first(row + (V - 1) * lanes, last);
            for (int m = 0; m < MB; ++m)
                for (int k = 0; k < V; ++k) sum[m][k] += p[e * Ms + m] * right[k];
        }
    }
    for (int m = 0; m < MB; ++m)
        for (int k = 0; k < V; ++k) {
            const int width = k == V - 1 ? last : lanes;
            vector value = sum[m][k];
            T* target = out + m * C + k * lanes;
            if (add) value += load_first(target, width);
            store_first(target, value, width);
        }
}

template <class T>
void gather(const Sizes<T>& n, const T* p, const int32_t* col, int64_t count, const T* x, T* z, bool add) {
    constexpr int lanes = Vector<T>::lanes, MB = kernel_rows;
    for (int64_t c = 0; c < n.C; c += 2 * lanes) {
        const int width = int(smaller(n.C - c, 2 * lanes));
        int64_t m = 0;
        for (; m + MB <= n.M; m += MB) {
            if (width > lanes)
                gather_block<T, MB, 2>(p + m, n.Ms, col, count, x + c, n.C, width, z + m * n.C + c, add);
            else
                gather_block<T, MB, 1>(p + m, n.Ms, col, count, x + c, n.C, width, z + m * n.C + c, add);
        }
        for (; m < n.M; ++m) {
            if (width > lanes)
                gather_block<T, 1, 2>(p + m, n.Ms, col, count, x + c, n.C, width, z + m * n.C + c, add);
            else
                gather_block<T, 1, 1>(p + m, n.Ms, col, count, x + c, n.C, width, z + m * n.C + c, add);
        }
    }
}

template <class T>
void finish(const Arguments& a, T* y) {
    const T* b = static_cast<const T*>(a.b);
    for (int64_t d = 0; d < a.outputs; ++d) y[d] += b[d];
    if (a.flags & EQC_FS_RELU)
        for (int64_t d = 0; d < a.outputs; ++d) y[d] = y[d] < 0 ? T(0) : y[d];
}

bool wrong(const Arguments* a) {
    if (!a || a->rows < 0 || a->cols < 0 || a->edges < 0 || a->given_edges < a->edges || a->channels < 0 ||
        a->outputs < 0 || a->matrices < 1 || a->chunks < 0 || a->threads < 0)
        return true;
    const bool edges = a->edges > 0;
    if (!a->rowptr || !a->chunk_rows || !a->u || !a->v || !a->c || !a->w) return true;
    if (edges && (!a->col || !a->values)) return true;
    return (a->cols > 0 && a->channels > 0 && !a->x) || (a->rows > 0 && a->channels > 0 && !a->centre);
}

template <class T>
struct Forward {
    const Arguments& a;
    Sizes<T> n;
    Arena arena;
    int threads;
    int64_t double_step, step;
    bool first;
    Assignment<T> assign;
    double* double_room;
    T *room, *h, *wide;

    Forward(const Arguments& arguments, void* workspace)
        : a(arguments),
          n(arguments),
          arena(workspace),
          threads(thread_count(a.threads, a.chunks)),
          double_step(padded(Assignment<T>::scratch(n), 8)),
          step(padded(n.Ms * (tile_rows + edge_step) + tile_rows * n.K, 16)),
          first(a.flags & EQC_FS_FIRST),
          assign(arguments, arena) {
        double_room = arena.template take<double>(threads * double_step);
        room = arena.template take<T>(threads * step);
        wide = first ? arena.template take<T>(n.K * n.D) : nullptr;
        h = first ? arena.template take<T>(a.cols * n.M * n.D) : nullptr;
    }

    void run() {
        assign.pack();
        assign.columns(threads, double_room, double_step);
        if (first) transform();
        parallel_for(threads, a.chunks, [&](int64_t chunk, int thread) {
            for (int64_t i = a.chunk_rows[chunk]; i < a.chunk_rows[chunk + 1]; i += tile_rows)
                tile(i, smaller(tile_rows, a.chunk_rows[chunk + 1] - i), thread);
        });
    }

    /* h = x·[W_1 ... W_M] at every column. */
    void transform() {
        const T* w = static_cast<const T*>(a.w);
        for (int64_t m = 0; m < n.M; ++m)
            for (int64_t c = 0; c < n.C; ++c)
                std::memcpy(wide + (c * n.M + m) * n.D, w + (m * n.C + c) * n.D, size_t(n.D) * sizeof(T));
        parallel_for(threads, (a.cols + block_rows - 1) / block_rows, [&](int64_t block, int) {
            const int64_t start = block * block_rows, rows = smaller(block_rows, a.cols - start);
            product<T>(rows, n.M * n.D, n.C, static_cast<const T*>(a.x) + start * n.C, n.C, 1, wide, n.M * n.D,
                       h + start * n.M * n.D, n.M * n.D, false);
        });
    }

    void tile(int64_t start, int64_t rows, int thread) {
        T *ea = room + thread * step, *p = ea + tile_rows * n.Ms, *z = p + edge_step * n.Ms;
        T* y = static_cast<T*>(a.y) + start * n.D;
        assign.factors(static_cast<const T*>(a.centre) + start * n.C, rows, assign.u, assign.offset,
                       double_room + thread * double_step, ea);
        if (first) std::memset(y, 0, size_t(rows * n.D) * sizeof(T));
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t begin = a.rowptr[start + i], end = a.rowptr[start + i + 1];
            if (begin == end && !first) std::memset(z + i * n.K, 0, size_t(n.K) * sizeof(T));
            for (int64_t e = begin; e < end; e += edge_step) {
                const int64_t count = smaller(edge_step, end - e);
                assign.softmax(start + i, ea + i * n.Ms, e, count, p);
                for (int64_t k = 0; k < count; ++k) {
                    const T weight = assign.weight(e + k);
                    for (int64_t m = 0; m < n.Ms; ++m) p[k * n.Ms + m] *= weight;
                }
                if (!first) {
                    gather(n, p, a.col + e, count, static_cast<const T*>(a.x), z + i * n.K, e > begin);
                    continue;
                }
                for (int64_t k = 0; k < count; ++k)
                    product<T>(1, n.D, n.M, p + k * n.Ms, 0, 1, h + int64_t(a.col[e + k]) * n.M * n.D, n.D, y + i * n.D,
                               n.D, true);
            }
        }
        if (!first) product<T>(rows, n.D, n.K, z, n.K, 1, static_cast<const T*>(a.w), n.D, y, n.D, false);
        for (int64_t i = 0; i < rows; ++i) finish(a, y + i * n.D);
    }
};

template <class T>
struct Backward {
    const Arguments& a;
    Sizes<T> n;
    Arena arena;
    int threads;
    int64_t double_step, step, most_touched = 0;
    bool edges_wanted, columns_wanted, weights_wanted;
    Assignment<T> assign;
    double* double_room;
    T *room, *wt, *da, *ds;

    Backward(const Arguments& arguments, void* workspace)
        : a(arguments), n(arguments), arena(workspace), threads(thread_count(a.threads, a.chunks)), assign(a, arena) {
        columns_wanted = a.dx || a.dv;
        edges_wanted = columns_wanted || a.dcentre || a.dvalues || a.du || a.dc;
        weights_wanted = a.dw || a.db;
        for (int64_t chunk = 0; columns_wanted && chunk < a.chunks; ++chunk) {
            const int64_t touched = a.touched_start[chunk + 1] - a.touched_start[chunk];
            most_touched = touched > most_touched ? touched : most_touched;
        }
        double_step = padded(Assignment<T>::scratch(n), 8);
        step = 0;
        Room sized(*this, nullptr, &step);
        double_room = arena.template take<double>(threads * double_step);
        room = arena.template take<T>(threads * step);
        wt = arena.template take<T>((n.D > 0 ? n.D : 1) * n.K);
        da = arena.template take<T>(a.rows * n.Ms);
        ds = arena.template take<T>(columns_wanted ? a.cols * n.Ms : 0);
    }

    /* What a thread works in. */
    struct Room {
        T *ea, *q, *p, *g, *z, *dz, *turned, *dy, *dx, *ds, *dw, *db;
        Room(const Backward& o, T* base, int64_t* total = nullptr) {
            const Sizes<T>& n = o.n;
            int64_t used = 0;
            const auto take = [&](int64_t count) {
                T* piece = base ? base + used : nullptr;
                used += padded(count, 16);
                return piece;
            };
            ea = take(tile_rows * n.Ms);
            q = take(edge_step * n.Ms);
            p = take(edge_step * n.Ms);
            g = take(edge_step * n.Ms);
            z = take(tile_rows * n.K);
            dz = take(tile_rows * n.K);
            turned = take(n.C * n.Ms);
            dy = take(tile_rows * n.D);
            dx = take(o.most_touched * n.C);
            ds = take(o.most_touched * n.Ms);
            dw = take(n.K * n.D);
            db = take(n.D);
            if (total) *total = used;
        }
    };

    void run() {
        assign.pack();
        assign.columns(threads, double_room, double_step);
        const T* w = static_cast<const T*>(a.w);
        for (int64_t k = 0; k < n.K; ++k)
            for (int64_t d = 0; d < n.D; ++d) wt[d * n.K + k] = w[k * n.D + d];
        clear(a.dx, a.cols * n.C);
        clear(a.dvalues, a.given_edges);
        clear(a.dw, n.K * n.D);
        clear(a.db, n.D);
        clear(ds, columns_wanted ? a.cols * n.Ms : 0);
        clear(da, a.rows * n.Ms);
        Turnstile turn;
        parallel_for(threads, a.chunks, [&](int64_t chunk, int thread) { this->chunk(chunk, thread, turn); });
        vertices();
    }

    static void clear(void* array, int64_t count) {
        if (array && count) std::memset(array, 0, size_t(count) * sizeof(T));
    }
    static void accumulate(void* array, const T* part, int64_t count) {
        T* sum = static_cast<T*>(array);
        if (sum)
            for (int64_t k = 0; k < count; ++k) sum[k] += part[k];
    }

    void chunk(int64_t chunk, int thread, Turnstile& turn) {
        const Room r(*this, room + thread * step);
        const int64_t touched = columns_wanted ? a.touched_start[chunk + 1] - a.touched_start[chunk] : 0;
        clear(r.dx, a.dx ? touched * n.C : 0);
        clear(r.ds, touched * n.Ms);
        clear(r.dw, n.K * n.D);
        clear(r.db, n.D);
        for (int64_t i = a.chunk_rows[chunk]; i < a.chunk_rows[chunk + 1]; i += tile_rows)
            tile(i, smaller(tile_rows, a.chunk_rows[chunk + 1] - i), thread, r);
        turn.wait_for(chunk);
        accumulate(a.dw, r.dw, n.K * n.D);
        accumulate(a.db, r.db, n.D);
        const int32_t* columns = a.touched + (columns_wanted ? a.touched_start[chunk] : 0);
        for (int64_t k = 0; k < touched; ++k) {
            if (a.dx) accumulate(static_cast<T*>(a.dx) + columns[k] * n.C, r.dx + k * n.C, n.C);
            accumulate(ds + columns[k] * n.Ms, r.ds + k * n.Ms, n.Ms);
        }
        turn.done();
    }

    void tile(int64_t start, int64_t rows, int thread, const Room& r) {
        const T* dy = static_cast<const T*>(a.dy) + start * n.D;
        if (a.flags & EQC_FS_RELU) {
            const T* y = static_cast<const T*>(a.y) + start * n.D;
            for (int64_t k = 0; k < rows * n.D; ++k) r.dy[k] = y[k] > 0 ? dy[k] : T(0);
            dy = r.dy;
        }
        if (a.db)
            for (int64_t i = 0; i < rows; ++i) accumulate(r.db, dy + i * n.D, n.D);
        if (edges_wanted) product<T>(rows, n.K, n.D, dy, n.D, 1, wt, n.K, r.dz, n.K, false);
        if (!edges_wanted && !a.dw) return;
        assign.factors(static_cast<const T*>(a.centre) + start * n.C, rows, assign.u, assign.offset,
                       double_room + thread * double_step, r.ea);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t begin = a.rowptr[start + i], end = a.rowptr[start + i + 1];
            if (begin == end) clear(r.z + i * n.K, n.K);
            if (begin < end && edges_wanted) turn_over(r.dz + i * n.K, r.turned);
            for (int64_t e = begin; e < end; e += edge_step) {
                const int64_t count = smaller(edge_step, end - e);
                assign.softmax(start + i, r.ea + i * n.Ms, e, count, r.q);
                for (int64_t k = 0; k < count; ++k) {
                    const T weight = assign.weight(e + k);
                    for (int64_t m = 0; m < n.Ms; ++m) r.p[k * n.Ms + m] = r.q[k * n.Ms + m] * weight;
                }
                if (a.dw) gather(n, r.p, a.col + e, count, static_cast<const T*>(a.x), r.z + i * n.K, e > begin);
                if (edges_wanted)
                    for (int64_t k = 0; k < count; ++k) edge(start + i, e + k, k, r, r.dz + i * n.K);
            }
        }
        if (a.dw) product<T>(n.K, n.D, rows, r.z, 1, n.K, dy, n.D, r.dw, n.D, true);
    }

    /* dz [M, C] to [C, Ms]. */
    void turn_over(const T* dz, T* turned) const {
        for (int64_t c = 0; c < n.C; ++c) {
            for (int64_t m = 0; m < n.M; ++m) turned[c * n.Ms + m] = dz[m * n.C + c];
            for (int64_t m = n.M; m < n.Ms; ++m) turned[c * n.Ms + m] = 0;
        }
    }

    void edge(int64_t i, int64_t slot, int64_t k, const Room& r, const T* dz) {
        T *g = r.g, *q = r.q + k * n.Ms, *p = r.p + k * n.Ms;
        const T* x = static_cast<const T*>(a.x) + int64_t(a.col[slot]) * n.C;
        product<T>(1, n.Ms, n.C, x, 0, 1, r.turned, n.Ms, g, n.Ms, false);
        /* Means are taken of what exceeds the likeliest matrix: in a saturated softmax all digits are in the difference. */
        int64_t top = 0;
        for (int64_t m = 1; m < n.M; ++m) top = q[m] > q[top] ? m : top;
        const T base = g[top];
        T mean = 0;
        for (int64_t m = 0; m < n.M; ++m) mean += q[m] * (g[m] - base);
        if (a.dvalues) static_cast<T*>(a.dvalues)[a.edge_of_slot ? a.edge_of_slot[slot] : slot] = mean + base;
        T* into = da + i * n.Ms;
        T* column = columns_wanted ? r.ds + int64_t(a.local[slot]) * n.Ms : nullptr;
        for (int64_t m = 0; m < n.M; ++m) {
            const T dl = p[m] * ((g[m] - base) - mean);
            into[m] += dl;
            if (column) column[m] += dl;
        }
        if (a.dx) product<T>(1, n.C, n.M, p, 0, 1, dz, n.C, r.dx + int64_t(a.local[slot]) * n.C, n.C, true);
    }

    /* What the logits contribute at the vertices. Fixed blocks, added up in order. */
    void vertices() {
        const bool shared = a.centre == a.x;
        side(a.rows, static_cast<const T*>(a.centre), da, a.u, shared ? a.dx : a.dcentre, !shared, a.du, a.dc);
        if (columns_wanted) side(a.cols, static_cast<const T*>(a.x), ds, a.v, a.dx, false, a.dv, nullptr);
    }

    void side(int64_t count, const T* x, const T* d, const void* parameter, void* dx, bool fresh, void* dparameter,
              void* sum) {
        const T* given = static_cast<const T*>(parameter);
        T* turned = wt; /* [M, C]; W^T is not needed any more */
        for (int64_t m = 0; m < n.M; ++m)
            for (int64_t c = 0; c < n.C; ++c) turned[m * n.C + c] = given[c * n.M + m];
        clear(dparameter, n.C * n.M);
        clear(sum, n.M);
        Turnstile turn;
        parallel_for(threads, (count + block_rows - 1) / block_rows, [&](int64_t block, int thread) {
            const int64_t start = block * block_rows, rows = smaller(block_rows, count - start);
            T* part = room + thread * step;
            if (dx)
                product<T>(rows, n.C, n.M, d + start * n.Ms, n.Ms, 1, turned, n.C, static_cast<T*>(dx) + start * n.C, n.C,
                           !fresh);
            if (dparameter)
                product<T>(n.C, n.M, rows, x + start * n.C, 1, n.C, d + start * n.Ms, n.Ms, part, n.M, false);
            turn.wait_for(block);
            accumulate(dparameter, part, dparameter ? n.C * n.M : 0);
            for (int64_t i = 0; sum && i < rows; ++i) accumulate(sum, d + (start + i) * n.Ms, n.M);
            turn.done();
        });
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
    if ((a->dx || a->dv) && (!a->touched_start || (a->edges > 0 && (!a->touched || !a->local)))) return EQC_BAD_ARGUMENT;
    if (a->centre == a->x && a->dcentre) return EQC_BAD_ARGUMENT;
    Backward<T>(*a, workspace).run();
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE(feature_steered_forward, eqc_feature_steered, eqc::forward)
EQC_DEFINE(feature_steered_backward, eqc_feature_steered, eqc::backward)
