/* Convolution at a list of sites on the CPU; compiled once for each instruction set, chosen when it is called. */
#include "block_sparse.h"

#include <algorithm>

#include "outer.h"
#include "pixels.h"
#include "rows.h"
#include "windows.h"

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

bool wrong(const Arguments* a) {
    if (!a || a->taps < 1 || a->threads < 0 || a->sites > a->out_rows || a->out_rows >= INT32_MAX) return true;
    if (!fits(a->sites) || !fits(a->taps) || !fits(a->in_rows) || !fits(a->channels) || !fits(a->filters)) return true;
    if (too_many(most_numbers, a->taps, a->channels, a->filters) || too_many(most_numbers, a->in_rows, a->channels) ||
        too_many(most_numbers, a->out_rows, a->filters) || too_many(most_numbers, a->sites, a->taps) ||
        too_many(most_numbers, a->in_rows, a->taps))
        return true;
    if (a->table) return a->site != nullptr;
    if (!axis_fits(a->height, a->out_height, a->kernel_height, a->stride_height, a->pad_height, a->dilation_height) ||
        !axis_fits(a->width, a->out_width, a->kernel_width, a->stride_width, a->pad_width, a->dilation_width))
        return true;
    if (too_many(largest_position, a->images, a->height, a->width) ||
        too_many(largest_position, a->images, a->out_height, a->out_width))
        return true;
    return a->kernel_height * a->kernel_width != a->taps || a->images * a->height * a->width != a->in_rows ||
           a->images * a->out_height * a->out_width != a->out_rows || (a->sites > 0 && !a->site);
}

/* Reads the list; cheap beside what is done with it. */
bool wrong_list(const Arguments* a) {
    return a->site && !within(a->site, number_listed(a->count, a->sites), a->out_rows);
}

Geometry geometry(const Arguments& a) {
    return {int32_t(a.height),        int32_t(a.width),        int32_t(a.out_height),      int32_t(a.out_width),
            int32_t(a.kernel_height), int32_t(a.kernel_width), int32_t(a.stride_height),   int32_t(a.stride_width),
            int32_t(a.pad_height),    int32_t(a.pad_width),    int32_t(a.dilation_height), int32_t(a.dilation_width)};
}

/* The output coordinates whose tap `reach` away is at these places, -1 where there is none. */
void reading(const int32_t* places, int64_t count, int32_t reach, int32_t stride, int32_t size, int32_t* to) {
    if (stride == 1) {
        for (int64_t s = 0; s < count; ++s) {
            const int32_t at = places[s] - reach;
            to[s] = uint32_t(at) < uint32_t(size) ? at : -1;
        }
        return;
    }
    for (int64_t s = 0; s < count; ++s) {
        const int32_t distance = places[s] - reach, t = distance / stride;
        to[s] = distance >= 0 && t < size && t * stride == distance ? t : -1;
    }
}

/* Rows of the output that read pixels of the input: by[position] is the row for an output position, -1 for none, as is
 * by[none]. */
int64_t rows_reading(const Geometry& g, const int32_t* by, int32_t none, const int32_t* pixels, int64_t count,
                     int32_t* rows, int64_t step) {
    int32_t line[most_tile], across[most_tile], down[most_tile], h[most_tile], w[most_tile];
    Coordinates at(g.height, g.width);
    for (int64_t i = 0; i < count; ++i) {
        at.move(pixels[i]);
        line[i] = at.image() * g.out_height;
        h[i] = at.h() + g.pad_height;
        w[i] = at.w() + g.pad_width;
    }
    int64_t found = 0;
    for (int32_t j = 0; j < g.kernel_width; ++j) {
        reading(w, count, j * g.dilation_width, g.stride_width, g.out_width, across);
        for (int32_t i = 0; i < g.kernel_height; ++i) {
            reading(h, count, i * g.dilation_height, g.stride_height, g.out_height, down);
            int32_t* to = rows + (i * g.kernel_width + j) * step;
            int32_t some = 0;
            for (int64_t s = 0; s < count; ++s) {
                const int32_t there = (line[s] + down[s]) * g.out_width + across[s];
                const int32_t row = by[(down[s] | across[s]) < 0 ? none : there];
                to[s] = row;
                some += row >= 0;
            }
            found += some;
        }
    }
    return found;
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
        const int64_t count = number_listed(a.count, a.sites);
        if (count == 0 || a.filters == 0) return;
        product.pack(static_cast<const T*>(a.w), false, static_cast<const T*>(a.bias));
        const int64_t tile = product.tile_sites(count);
        const Geometry g = geometry(a);
        const typename RowsProduct<T>::Places places{static_cast<const T*>(a.x), nullptr, static_cast<T*>(a.y), nullptr,
                                                     (a.flags & EQC_BS_RELU) != 0};
        parallel_for(threads, (count + tile - 1) / tile, [&](int64_t item, int thread) {
            const int64_t first = item * tile, some = smaller(tile, count - first);
            product.tile(thread, places, a.site, first, some, [&](int32_t* rows, int64_t step) {
                return a.table ? turn_table(a.table + first * a.taps, a.taps, some, rows, step)
                               : rows_read(g, a.site + first, some, rows, step);
            });
        });
    }
};

/* Gradients. The cotangent of row `entry` of the list is `g` of g_rows[entry], or of `entry` itself when that is NULL:
 * with a ReLU it is a copy in the order of the list, without one dy. */
template <class T>
struct Backward {
    const Arguments& a;
    Arena arena;
    int threads;
    bool relu;
    RowsProduct<T> product;
    RowSet pixels;    /* image form: input pixels that some site reads */
    OuterRows<T> outer;
    int32_t* by;      /* image form: the row of g for each output position, and -1 behind them */
    int32_t* inverse; /* table form, where it is not given */
    T* masked;
    Geometry geo;
    const T* g;
    const int32_t* g_rows;

    static constexpr int64_t block = 4096;

    Backward(const Arguments& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          threads(thread_count(a.threads, (a.sites * a.taps + site_quantum - 1) / site_quantum)),
          relu(a.flags & EQC_BS_RELU),
          product(a.taps, a.filters, a.channels, most_tile, arena, a.dx ? threads : 0),
          pixels(a.dx && !a.table ? a.in_rows : 0, a.sites * a.taps, arena),
          outer(a.taps, a.channels, a.filters, arena, a.dw || a.db ? threads : 0, a.dw),
          by(arena.take<int32_t>(a.dx && !a.table ? a.out_rows + 1 : 0)),
          inverse(arena.take<int32_t>(a.dx && a.table && !a.inverse ? a.in_rows * a.taps : 0)),
          masked(arena.take<T>(relu ? a.sites * a.filters : 0)),
          geo(geometry(a)),
          g(relu ? masked : static_cast<const T*>(a.dy)),
          g_rows(relu ? nullptr : a.site) {}

    void run() {
        const int64_t count = number_listed(a.count, a.sites);
        if (relu) mask(count);
        if (a.dx) {
            product.pack(static_cast<const T*>(a.w), true, nullptr);
            if (a.table)
                table_dx(count);
            else
                image_dx(count);
        }
        if (a.dw || a.db) weights(count);
    }

    /* Calls body(first, count) for blocks of `all` things. */
    template <class Body>
    void for_blocks(int64_t all, const Body& body) const {
        parallel_for(threads, (all + block - 1) / block,
                     [&](int64_t item, int) { body(item * block, smaller(block, all - item * block)); });
    }

    void mask(int64_t count) {
        for_blocks(count, [&](int64_t first, int64_t some) {
            for (int64_t i = first; i < first + some; ++i) {
                const int64_t row = (a.site ? a.site[i] : i) * a.filters;
                const T *y = static_cast<const T*>(a.y) + row, *dy = static_cast<const T*>(a.dy) + row;
                T* to = masked + i * a.filters;
                for (int64_t k = 0; k < a.filters; ++k) to[k] = y[k] > 0 ? dy[k] : T(0);
            }
        });
    }

    template <class Fill>
    void rows_of_dx(int64_t rows, const int32_t* list, const Fill& fill) {
        const int64_t tile = product.tile_sites(rows);
        parallel_for(threads, (rows + tile - 1) / tile, [&](int64_t item, int thread) {
            const int64_t first = item * tile, some = smaller(tile, rows - first);
            product.tile(thread, {g, nullptr, static_cast<T*>(a.dx), nullptr, false}, list, first, some,
                         [&](int32_t* to, int64_t step) { return fill(first, some, to, step); });
        });
    }

    void image_dx(int64_t count) {
        pixels.clear(threads);
        for_blocks(a.out_rows + 1, [&](int64_t first, int64_t some) { std::fill_n(by + first, some, -1); });
        for_blocks(count, [&](int64_t first, int64_t some) {
            Coordinates at(geo.out_height, geo.out_width);
            for (int64_t i = first; i < first + some; ++i) {
                by[a.site[i]] = g_rows ? a.site[i] : int32_t(i);
                at.move(a.site[i]);
                for_pixels_read(geo, at, [&](int32_t pixel) EQC_INLINE_LAMBDA { pixels.mark(pixel); });
            }
        });
        T* dx = static_cast<T*>(a.dx);
        pixels.list(threads, [&](int64_t first, int64_t some) {
            std::memset(dx + first * a.channels, 0, size_t(some * a.channels) * sizeof(T));
        });
        const int32_t* list = pixels.members();
        rows_of_dx(pixels.count(), list, [&](int64_t first, int64_t some, int32_t* to, int64_t step) {
            return rows_reading(geo, by, int32_t(a.out_rows), list + first, some, to, step);
        });
    }

    void table_dx(int64_t count) {
        const int32_t* readers = a.inverse;
        if (!readers) {
            for_blocks(a.in_rows * a.taps,
                       [&](int64_t first, int64_t some) { std::fill_n(inverse + first, some, -1); });
            for_blocks(count, [&](int64_t first, int64_t some) {
                for (int64_t i = first; i < first + some; ++i)
                    for (int64_t t = 0; t < a.taps; ++t) {
                        const int32_t row = a.table[i * a.taps + t];
                        if (row >= 0) inverse[row * a.taps + t] = int32_t(i);
                    }
            });
            readers = inverse;
        }
        rows_of_dx(a.in_rows, nullptr, [&](int64_t first, int64_t some, int32_t* to, int64_t step) {
            return turn_table(readers + first * a.taps, a.taps, some, to, step);
        });
    }

    void weights(int64_t count) {
        const int64_t part = outer.part(a.table), chunk = outer.chunk(count, part);
        outer.clear(static_cast<T*>(a.db));
        Turnstile turn;
        parallel_for(threads, (count + chunk - 1) / chunk, [&](int64_t item, int thread) {
            outer.begin(thread);
            const int64_t end = smaller(count, (item + 1) * chunk);
            for (int64_t first = item * chunk; first < end; first += part) {
                const int64_t some = smaller(part, end - first);
                outer.add(thread, some, static_cast<const T*>(a.x), g, g_rows ? g_rows + first : nullptr, first,
                          [&](int32_t* rows, int64_t step) {
                              return a.table ? turn_table(a.table + first * a.taps, a.taps, some, rows, step)
                                             : rows_read(geo, a.site + first, some, rows, step);
                          });
            }
            turn.wait_for(item);
            outer.end(thread, static_cast<T*>(a.db));
            turn.done();
        });
        if (a.dw) outer.finish(static_cast<T*>(a.dw));
    }
};

bool lacks(const Arguments* a, const void* rows, int64_t width) {
    return a->sites > 0 && width > 0 && !rows;
}

template <class T>
size_t forward_workspace(const Arguments* a) {
    return wrong(a) ? 0 : Forward<T>(*a, nullptr).arena.used();
}
template <class T>
size_t backward_workspace(const Arguments* a) {
    return wrong(a) ? 0 : Backward<T>(*a, nullptr).arena.used();
}
template <class T>
int forward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace || lacks(a, a->y, a->filters) || wrong_list(a)) return EQC_BAD_ARGUMENT;
    const int64_t terms = a->channels * a->filters;
    if (lacks(a, a->w, terms) || (a->in_rows > 0 && lacks(a, a->x, terms))) return EQC_BAD_ARGUMENT;
    Forward<T>(*a, workspace).run();
    return EQC_OK;
}
template <class T>
int backward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace || lacks(a, a->dy, a->filters) || wrong_list(a)) return EQC_BAD_ARGUMENT;
    if ((a->flags & EQC_BS_RELU) && lacks(a, a->y, a->filters)) return EQC_BAD_ARGUMENT;
    const int64_t terms = a->channels * a->filters;
    if ((a->dx && lacks(a, a->w, terms)) || (a->dw && a->in_rows > 0 && lacks(a, a->x, terms))) return EQC_BAD_ARGUMENT;
    Backward<T>(*a, workspace).run();
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE_AMX(site_forward, eqc_sites, eqc::forward)
EQC_DEFINE_AMX(site_backward, eqc_sites, eqc::backward)
