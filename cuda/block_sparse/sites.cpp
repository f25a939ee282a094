/* Convolution at a list of sites on the CPU; compiled once for each instruction set, chosen when it is called. */
#include "block_sparse.h"

#include "pixels.h"
#include "rows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

using Arguments = eqc_sites;

bool fits(int64_t n) { return n >= 0 && n <= INT32_MAX; }

/* Whether out - 1 strides and a whole kernel from the first pixel of the padding on fit into int32. */
bool axis_fits(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    if (!fits(in) || !fits(out) || kernel < 1 || !fits(kernel) || stride < 1 || !fits(stride) || !fits(pad) ||
        dilation < 1 || !fits(dilation))
        return false;
    const int64_t strides = out > 0 ? (out - 1) * stride : 0, reach = kernel * dilation;
    return fits(strides) && fits(reach) && fits(strides + reach) && fits(in + pad + reach);
}

bool fits_product(int64_t a, int64_t b, int64_t c) { return a == 0 || b == 0 || (fits(a * b) && fits(a * b * c)); }

bool wrong(const Arguments* a) {
    if (!a || a->sites < 0 || a->taps < 1 || a->channels < 0 || a->filters < 0 || a->threads < 0) return true;
    if (!fits(a->sites) || !fits(a->taps) || !fits(a->in_rows) || !fits(a->out_rows) || !fits(a->channels) ||
        !fits(a->filters) || a->sites > a->out_rows)
        return true;
    if (a->table) return a->site != nullptr;
    if (!axis_fits(a->height, a->out_height, a->kernel_height, a->stride_height, a->pad_height, a->dilation_height) ||
        !axis_fits(a->width, a->out_width, a->kernel_width, a->stride_width, a->pad_width, a->dilation_width))
        return true;
    if (!fits(a->images) || !fits_product(a->images, a->height, a->width) ||
        !fits_product(a->images, a->out_height, a->out_width))
        return true;
    return a->kernel_height * a->kernel_width != a->taps || a->images * a->height * a->width != a->in_rows ||
           a->images * a->out_height * a->out_width != a->out_rows || (a->sites > 0 && !a->site);
}

Geometry geometry(const Arguments& a) {
    return {int32_t(a.height),        int32_t(a.width),        int32_t(a.out_height),      int32_t(a.out_width),
            int32_t(a.kernel_height), int32_t(a.kernel_width), int32_t(a.stride_height),   int32_t(a.stride_width),
            int32_t(a.pad_height),    int32_t(a.pad_width),    int32_t(a.dilation_height), int32_t(a.dilation_width)};
}

int64_t listed(const Arguments& a) {
    if (!a.count) return a.sites;
    return *a.count < 0 ? 0 : smaller(*a.count, a.sites);
}

/* Turns [entry, tap] into [tap, entry]; returns how many rows there are. */
int64_t turn_table(const int32_t* table, int64_t taps, int64_t count, int32_t* rows, int64_t step) {
    int64_t found = 0;
    for (int64_t t = 0; t < taps; ++t) {
        int32_t missing = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t row = table[i * taps + t];
            rows[t * step + i] = row;
            missing += row < 0;
        }
        found += count - missing;
    }
    return found;
}

template <class T>
struct Forward {
    const Arguments& a;
    Arena arena;
    int threads;
    RowsProduct<T> product;

    Forward(const Arguments& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          threads(thread_count(a.threads, (a.sites + site_quantum - 1) / site_quantum)),
          product(a.taps, a.channels, a.filters, a.table ? most_tile : 96, arena, threads) {}

    void run() {
        const int64_t count = listed(a);
        if (count == 0 || a.filters == 0) return;
        product.pack(static_cast<const T*>(a.w), false, static_cast<const T*>(a.bias));
        const int64_t tile = product.tile_sites(count);
        const Geometry g = geometry(a);
        parallel_for(threads, (count + tile - 1) / tile, [&](int64_t item, int thread) {
            const int64_t first = item * tile, some = smaller(tile, count - first);
            product.tile(thread, static_cast<const T*>(a.x), nullptr, a.flags & EQC_BS_RELU, static_cast<T*>(a.y), a.site,
                         first, some, [&](int32_t* rows, int64_t step) {
                             return a.table ? turn_table(a.table + first * a.taps, a.taps, some, rows, step)
                                            : rows_read(g, a.site + first, some, rows, step);
                         });
        });
    }
};

template <class T>
size_t forward_workspace(const Arguments* a) {
    return wrong(a) ? 0 : Forward<T>(*a, nullptr).arena.used();
}
template <class T>
int forward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace) return EQC_BAD_ARGUMENT;
    if (a->sites > 0 && a->filters > 0 && (!a->y || (a->channels > 0 && (!a->w || (a->in_rows > 0 && !a->x)))))
        return EQC_BAD_ARGUMENT;
    Forward<T>(*a, workspace).run();
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE(site_forward, eqc_sites, eqc::forward)
