/* The bottleneck at a list of pixels on the CPU; compiled once for each instruction set, chosen when it is called.
 *
 * h2 is made first, once for each pixel that a listed one reads, in an image in the workspace of which only those
 * pixels are touched. Then tiles of listed pixels: the 3x3 convolution of h2 and the last product, with nothing in
 * between but the tile's M numbers a pixel. Scales are multiplied into the weights before them.
 */
#include "block_sparse.h"

#include "pixels.h"
#include "rows.h"
#include "windows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

using Arguments = eqc_residual;

constexpr int64_t tile_pixels = 96;

bool wrong(const Arguments* a) {
    if (!a || a->threads < 0) return true;
    for (const int64_t n : {a->images, a->height, a->width, a->channels, a->bottleneck, a->sites})
        if (n < 0 || n > INT32_MAX) return true;
    if (too_many(largest_position, a->images, a->height, a->width)) return true;
    const int64_t pixels = a->images * a->height * a->width;
    return too_many(most_numbers, pixels, larger(a->channels, a->bottleneck)) ||
           too_many(most_numbers, larger(a->channels, 9 * a->bottleneck), a->bottleneck) || a->sites > pixels ||
           (a->sites > 0 && !a->site);
}

template <class T>
struct Residual {
    using Places = typename RowsProduct<T>::Places;
    const Arguments& a;
    Arena arena;
    int64_t C, M;
    int threads;
    RowSet read; /* pixels whose h2 is needed */
    RowsProduct<T> first, second, third;
    T *h2, *outside, *scaled, *room;

    Residual(const Arguments& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          C(a.channels),
          M(a.bottleneck),
          threads(thread_count(a.threads, (a.sites + site_quantum - 1) / site_quantum)),
          read(a.images * a.height * a.width, a.sites * 9, arena),
          first(1, C, M, tile_pixels, arena, threads),
          second(9, M, M, tile_pixels, arena, threads),
          third(1, M, C, tile_pixels, arena, threads),
          h2(arena.take<T>(a.images * a.height * a.width * M)),
          outside(arena.take<T>(M)),
          scaled(arena.take<T>((C > 9 * M ? C : 9 * M) * M)),
          room(arena.take<T>(threads * step())) {}

    /* What a thread works in: rows of a, or of h2 after the 3x3 convolution. */
    int64_t step() const { return padded(tile_pixels * (C > M ? C : M), 16); }
    static const T* array(const void* given) { return static_cast<const T*>(given); }

    /* Columns of [rows, M] multiplied by `scale`. */
    const T* scale(int64_t rows, const void* w, const void* by) const {
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t k = 0; k < M; ++k) scaled[i * M + k] = array(w)[i * M + k] * array(by)[k];
        return scaled;
    }

    static int64_t all(int32_t* rows, int64_t count) {
        for (int64_t i = 0; i < count; ++i) rows[i] = int32_t(i);
        return count;
    }

    void run() {
        const int64_t count = number_listed(a.count, a.sites);
        if (count == 0 || C == 0) return;
        first.pack(scale(C, a.w1, a.scale2), false, array(a.shift2));
        second.pack(scale(9 * M, a.w2, a.scale3), false, array(a.shift3));
        third.pack(array(a.w3), false, nullptr);
        const Geometry g{
            int32_t(a.height), int32_t(a.width), int32_t(a.height), int32_t(a.width), 3, 3, 1, 1, 1, 1, 1, 1};
        set_outside();
        find(g, count);
        const int64_t tile = first.tile_sites(read.count());
        parallel_for(threads, (read.count() + tile - 1) / tile, [&](int64_t item, int thread) {
            narrow(item * tile, smaller(tile, read.count() - item * tile), thread);
        });
        const int64_t other = second.tile_sites(count);
        parallel_for(threads, (count + other - 1) / other, [&](int64_t item, int thread) {
            widen(g, item * other, smaller(other, count - item * other), thread);
        });
    }

    void set_outside() {
        for (int64_t k = 0; k < M; ++k) outside[k] = 0;
        if (!(a.flags & EQC_BS_ORIGINAL)) return;
        for (int64_t c = 0; c < C; ++c) room[c] = activated(T(0), c);
        first.tile(0, {room, nullptr, outside, nullptr, true}, nullptr, 0, 1,
                   [](int32_t* rows, int64_t) { return all(rows, 1); });
    }

    EQC_INLINE T activated(T x, int64_t c) const {
        if (!a.scale1) return x;
        const T value = array(a.scale1)[c] * x + array(a.shift1)[c];
        return value < 0 ? T(0) : value;
    }

    void find(const Geometry& g, int64_t count) {
        constexpr int64_t block = 4096;
        read.clear(threads);
        parallel_for(threads, (count + block - 1) / block, [&](int64_t item, int) {
            Coordinates at(g.height, g.width);
            for (int64_t i = item * block; i < smaller(count, (item + 1) * block); ++i) {
                at.move(a.site[i]);
                for_pixels_read(g, at, [&](int32_t pixel) EQC_INLINE_LAMBDA { read.mark(pixel); });
            }
        });
        read.list(threads, [](int64_t, int64_t) {});
    }

    /* Asks for a whole row: processors do not foresee the next listed pixel. */
    static EQC_INLINE void prefetch_all(const T* row, int64_t n) {
        for (int64_t k = 0; k < n; k += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + k);
    }

    /* h2 of some of the pixels that are read. */
    void narrow(int64_t start, int64_t count, int thread) {
        const int32_t* pixels = read.members() + start;
        if (!a.scale1) {
            first.tile(thread, {array(a.x), nullptr, h2, nullptr, true}, pixels, 0, count, [&](int32_t* rows, int64_t) {
                std::memcpy(rows, pixels, size_t(count) * sizeof *rows);
                return count;
            });
            return;
        }
        T* active = room + thread * step();
        for (int64_t i = 0; i < count; ++i) {
            const T *x = array(a.x) + pixels[i] * C, *by = array(a.scale1), *shift = array(a.shift1);
            if (i + 4 < count) prefetch_all(array(a.x) + pixels[i + 4] * C, C);
            T* to = active + i * C;
            for (int64_t c = 0; c < C; ++c) {
                const T value = by[c] * x[c] + shift[c];
                to[c] = value < 0 ? T(0) : value;
            }
        }
        first.tile(thread, {active, nullptr, h2, nullptr, true}, pixels, 0, count,
                   [&](int32_t* rows, int64_t) { return all(rows, count); });
    }

    /* y of some of the listed pixels. */
    void widen(const Geometry& g, int64_t start, int64_t count, int thread) {
        const int32_t* pixels = a.site + start;
        T* narrow = room + thread * step();
        const T* missing = a.flags & EQC_BS_ORIGINAL ? outside : nullptr;
        second.tile(thread, {h2, missing, narrow, nullptr, true}, nullptr, 0, count,
                    [&](int32_t* rows, int64_t step) { return rows_read(g, pixels, count, rows, step); });
        third.tile(thread, {narrow, nullptr, static_cast<T*>(a.y), array(a.x), false}, pixels, 0, count,
                   [&](int32_t* rows, int64_t) { return all(rows, count); });
    }
};

template <class T>
size_t residual_workspace(const Arguments* a) {
    return wrong(a) ? 0 : Residual<T>(*a, nullptr).arena.used();
}
template <class T>
int residual(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace) return EQC_BAD_ARGUMENT;
    const bool all = a->sites > 0 && a->channels > 0, inner = all && a->bottleneck > 0;
    if ((all && (!a->x || !a->y || a->y == a->x || (a->scale1 && !a->shift1))) ||
        (inner && (!a->w1 || !a->scale2 || !a->shift2 || !a->w2 || !a->scale3 || !a->shift3 || !a->w3)))
        return EQC_BAD_ARGUMENT;
    if (!within(a->site, number_listed(a->count, a->sites), a->images * a->height * a->width)) return EQC_BAD_ARGUMENT;
    Residual<T>(*a, workspace).run();
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE_AMX(residual_forward, eqc_residual, eqc::residual)
