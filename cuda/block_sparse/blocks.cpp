/* Blocks out of images and back, on the CPU.
 *
 * Gather goes through the list: a row of a window is one run of numbers. Scatter and everything that depends on the
 * order of the list goes through bands of the images, where each pixel has one thread. Blocks with the channels first
 * pass through registers, a square of pixels and channels at a time.
 */
#include "bands.h"
#include "bit_rows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* A loop over vectors is as fast as memcpy on long runs and faster on short ones; stores past the cache are slower. */
template <class T, bool add>
EQC_INLINE void put(T* to, const T* from, int64_t n) {
    constexpr int lanes = Vector<T>::lanes;
    int64_t k = 0;
    if (n >= 8 * lanes) {
        /* Stores that cross lines of the cache are slow. */
        const int64_t before = int64_t(-reinterpret_cast<uintptr_t>(to) % (lanes * sizeof(T)) / sizeof(T));
        if (before) {
            const auto given = load_first(from, int(before));
            store_first(to, add ? load_first(to, int(before)) + given : given, int(before));
            k = before;
        }
    }
    for (; k + lanes <= n; k += lanes) store(to + k, add ? load(to + k) + load(from + k) : load(from + k));
    if (k < n) {
        const int last = int(n - k);
        store_first(to + k, add ? load_first(to + k, last) + load_first(from + k, last) : load_first(from + k, last),
                    last);
    }
}

template <class T>
EQC_INLINE void clear(T* to, int64_t n) {
    if (n > 0) std::memset(to, 0, size_t(n) * sizeof(T));
}

/* Pixels of a window whose channels-first block is handled together: whole vectors of every channel. */
constexpr int tile_pixels = 64;

/* Calls body(first, count, places) for pixels of the window's rows [from, end), 64 at a time; places are their flat
 * positions in the images, -1 outside of the window's part of the image. */
template <class Body>
EQC_INLINE void for_tiles(const eqc_blocks& a, const Window& window, int64_t from, int64_t end, const Body& body) {
    const int64_t width = a.window_width, x_end = window.x.skipped + window.x.end - window.x.begin;
    const int64_t y_end = window.y.skipped + window.y.end - window.y.begin;
    int64_t row = from, column = 0;
    int32_t places[tile_pixels];
    for (int64_t first = from * width; first < end * width; first += tile_pixels) {
        const int count = int(smaller(tile_pixels, end * width - first));
        for (int k = 0; k < count; ++k) {
            const bool inside = row >= window.y.skipped && row < y_end && column >= window.x.skipped && column < x_end;
            const int64_t y = window.y.begin + row - window.y.skipped, x = window.x.begin + column - window.x.skipped;
            places[k] = inside ? int32_t((window.image * a.height + y) * a.width + x) : -1;
            if (++column == width) column = 0, ++row;
        }
        body(first, count, places);
    }
}

/* block[c, k] = x[places[k], c], 0 where there is no place; a channel's pixels are `step` apart in the block. */
template <class T>
EQC_INLINE void gather_tile(const T* x, int64_t channels, const int32_t* places, int count, T* block, int64_t step) {
    constexpr int lanes = Vector<T>::lanes;
    for (int64_t c = 0; c < channels; c += lanes) {
        const int width = int(smaller(lanes, channels - c));
        for (int p = 0; p < count; p += lanes) {
            const int height = count - p < lanes ? count - p : lanes;
            typename Vector<T>::type square[lanes] = {};
            for (int k = 0; k < height; ++k) {
                if (places[p + k] < 0) continue;
                const T* from = x + places[p + k] * channels + c;
                square[k] = width == lanes ? load(from) : load_first(from, width);
            }
            transpose(square);
            T* to = block + c * step + p;
            for (int k = 0; k < width; ++k, to += step)
                height == lanes ? store(to, square[k]) : store_first(to, square[k], height);
        }
    }
}

/* The way back. */
template <class T, bool add>
EQC_INLINE void scatter_tile(const T* block, int64_t step, int64_t channels, const int32_t* places, int count, T* y) {
    constexpr int lanes = Vector<T>::lanes;
    for (int64_t c = 0; c < channels; c += lanes) {
        const int width = int(smaller(lanes, channels - c));
        for (int p = 0; p < count; p += lanes) {
            const int height = count - p < lanes ? count - p : lanes;
            typename Vector<T>::type square[lanes] = {};
            const T* from = block + c * step + p;
            for (int k = 0; k < width; ++k, from += step)
                square[k] = height == lanes ? load(from) : load_first(from, height);
            transpose(square);
            for (int k = 0; k < height; ++k) {
                if (places[p + k] < 0) continue;
                T* to = y + places[p + k] * channels + c;
                if (width == lanes)
                    store(to, add ? load(to) + square[k] : square[k]);
                else
                    store_first(to, add ? load_first(to, width) + square[k] : square[k], width);
            }
        }
    }
}

/* Rows of the images in a band: four bands a thread. */
EQC_INLINE int64_t thread_band(const eqc_blocks& a, int threads) {
    const int64_t rows = larger(a.images * a.height, 1);
    return threads == 1 ? rows : (rows + 4 * threads - 1) / (4 * threads);
}

template <class T>
struct Gather {
    const eqc_blocks& a;
    Arena arena;
    int threads;
    bool owned;
    int64_t pixels, size; /* of a block */
    Bands bands;
    int32_t* owner; /* [images, height, width] the last row that covers a pixel; pixels that none covers have none */

    Gather(const eqc_blocks& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          threads(thread_count(a.threads, a.rows)),
          owned(a.flags & EQC_BS_OWNED),
          pixels(a.window_height * a.window_width),
          size(pixels * a.channels),
          bands(a, arena),
          owner(arena.take<int32_t>(owned ? a.images * a.height * a.width : 0)) {}

    void run() {
        if (owned) find_owners();
        const int64_t listed = number_listed(a.count, a.rows), group = grouped(size * int64_t(sizeof(T)), 65536);
        parallel_for(threads, (a.rows + group - 1) / group, [&](int64_t item, int) {
            for (int64_t r = item * group; r < smaller(a.rows, (item + 1) * group); ++r) {
                T* block = static_cast<T*>(a.blocks) + r * size;
                const Window window = r < listed ? window_of(a, r) : Window{};
                if (window.empty())
                    clear(block, size);
                else if (a.flags & EQC_BS_TRANSPOSE)
                    gather_turned(r, window, block);
                else
                    gather_rows(r, window, block);
            }
        });
    }

    void find_owners() {
        bands.run(threads, thread_band(a, threads), [&](int64_t, int64_t, const auto& windows) {
            windows([&](int64_t r, const Window& window) {
                for (int64_t y = window.y.begin; y < window.y.end; ++y) {
                    int32_t* line = owner + (window.image * a.height + y) * a.width;
                    for (int64_t x = window.x.begin; x < window.x.end; ++x) line[x] = int32_t(r);
                }
            });
        });
    }

    void gather_rows(int64_t r, const Window& window, T* block) const {
        const int64_t line = a.window_width * a.channels, left = window.x.skipped * a.channels;
        const int64_t inside = (window.x.end - window.x.begin) * a.channels;
        const int64_t lines = window.y.end - window.y.begin;
        clear(block, window.y.skipped * line);
        T* to = block + window.y.skipped * line;
        for (int64_t y = window.y.begin; y < window.y.end; ++y, to += line) {
            const int64_t position = (window.image * a.height + y) * a.width + window.x.begin;
            const T* from = static_cast<const T*>(a.x) + position * a.channels;
            if (y + 1 < window.y.end) prefetch(from + a.width * a.channels, inside);
            clear(to, left);
            put<T, false>(to + left, from, inside);
            clear(to + left + inside, line - left - inside);
            if (owned) clear_lost(r, owner + position, window.x.end - window.x.begin, to + left);
        }
        clear(to, (a.window_height - window.y.skipped - lines) * line);
    }

    /* Zeros at pixels that have another owner. */
    void clear_lost(int64_t r, const int32_t* owners, int64_t n, T* to) const {
        for (int64_t k = 0; k < n; ++k)
            if (owners[k] != r) clear(to + k * a.channels, a.channels);
    }

    void gather_turned(int64_t r, const Window& window, T* block) const {
        for_tiles(a, window, 0, a.window_height, [&](int64_t first, int count, int32_t* places) EQC_INLINE_LAMBDA {
            if (owned)
                for (int k = 0; k < count; ++k)
                    if (places[k] >= 0 && owner[places[k]] != r) places[k] = -1;
            gather_tile(static_cast<const T*>(a.x), a.channels, places, count, block + first, pixels);
        });
    }
};

template <class T>
struct Scatter {
    const eqc_blocks& a;
    Arena arena;
    int threads;
    int64_t pixels; /* of a block */
    Bands bands;

    Scatter(const eqc_blocks& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          threads(thread_count(a.threads, a.images * a.height)),
          pixels(a.window_height * a.window_width),
          bands(a, arena) {}

    void run() {
        a.flags & EQC_BS_ADD ? run<true>() : run<false>();
    }

    /* Bands that the base is copied to are small enough to be in the cache still when blocks follow. */
    int64_t band_height() const {
        const int64_t even = thread_band(a, threads), bytes = a.width * a.channels * int64_t(sizeof(T));
        return a.base == a.y ? even : smaller(even, grouped(bytes, 262144));
    }

    template <bool add>
    void run() {
        T* y = static_cast<T*>(a.y);
        const T* base = static_cast<const T*>(a.base);
        const int64_t line = a.width * a.channels;
        bands.run(threads, band_height(), [&](int64_t first, int64_t end, const auto& windows) {
            if (!base)
                clear(y + first * line, (end - first) * line);
            else if (base != y)
                std::memcpy(y + first * line, base + first * line, size_t((end - first) * line) * sizeof(T));
            windows([&](int64_t r, const Window& window) { put_block<add>(r, window, y); });
        });
    }

    template <bool add>
    void put_block(int64_t r, const Window& window, T* y) const {
        const T* block = a.blocks_in ? static_cast<const T*>(a.blocks_in) + r * pixels * a.channels : nullptr;
        const int64_t inside = (window.x.end - window.x.begin) * a.channels, lines = window.y.end - window.y.begin;
        if (block && (a.flags & EQC_BS_TRANSPOSE)) {
            for_tiles(a, window, window.y.skipped, window.y.skipped + lines,
                      [&](int64_t first, int count, int32_t* places) EQC_INLINE_LAMBDA {
                          scatter_tile<T, add>(block + first, pixels, a.channels, places, count, y);
                      });
            return;
        }
        for (int64_t k = 0; k < lines; ++k) {
            T* to = y + ((window.image * a.height + window.y.begin + k) * a.width + window.x.begin) * a.channels;
            if (block)
                put<T, add>(to, block + ((window.y.skipped + k) * a.window_width + window.x.skipped) * a.channels,
                            inside);
            else if (!add)
                clear(to, inside);
        }
    }
};

struct Covered {
    const eqc_blocks& a;
    Arena arena;
    int threads;
    Bands bands;
    BitRows pixels;

    Covered(const eqc_blocks& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          threads(thread_count(a.threads, a.images * a.height)),
          bands(a, arena),
          pixels(a.images * a.height, a.width, arena) {}

    void run() {
        bands.run(threads, thread_band(a, threads), [&](int64_t first, int64_t end, const auto& windows) {
            clear(pixels.row(first), (end - first) * pixels.words);
            windows([&](int64_t, const Window& window) {
                for (int64_t y = window.y.begin; y < window.y.end; ++y)
                    set_bits(pixels.row(window.image * a.height + y), window.x.begin, window.x.end);
            });
            for (int64_t i = first; i < end; ++i) pixels.count(i);
        });
        *a.pixel_count = int32_t(pixels.add_up());
        pixels.write_flat(threads, a.pixels);
    }
};

bool wrong_list(const eqc_blocks* a) { return !a || wrong_windows(*a) || a->rows < 0 || a->rows > largest_position; }

bool wrong_blocks(const eqc_blocks* a) {
    return wrong_list(a) || too_many(most_numbers, a->rows, a->window_height, a->window_width, a->channels) ||
           too_many(most_numbers, a->images, a->height, a->width, a->channels);
}

bool large_window(const eqc_blocks* a) { return too_many(largest_position, a->window_height, a->window_width); }

bool no_image(const eqc_blocks* a) { return a->images * a->height * a->width * a->channels == 0; }

template <class T>
size_t block_gather_workspace(const eqc_blocks* a) {
    return wrong_blocks(a) ? 0 : Gather<T>(*a, nullptr).arena.used();
}
template <class T>
int block_gather(const eqc_blocks* a, void* workspace) {
    if (wrong_blocks(a) || !workspace) return EQC_BAD_ARGUMENT;
    if (large_window(a)) return EQC_UNSUPPORTED;
    const bool blocks = a->rows > 0 && a->channels > 0;
    if (blocks && (!a->index || !a->blocks || (!no_image(a) && !a->x))) return EQC_BAD_ARGUMENT;
    if (blocks) Gather<T>(*a, workspace).run();
    return EQC_OK;
}

template <class T>
size_t block_scatter_workspace(const eqc_blocks* a) {
    return wrong_blocks(a) ? 0 : Scatter<T>(*a, nullptr).arena.used();
}
template <class T>
int block_scatter(const eqc_blocks* a, void* workspace) {
    if (wrong_blocks(a) || !workspace || (a->rows > 0 && !a->index) || (!no_image(a) && !a->y)) return EQC_BAD_ARGUMENT;
    if (large_window(a)) return EQC_UNSUPPORTED;
    if (!no_image(a)) Scatter<T>(*a, workspace).run();
    return EQC_OK;
}

template <class T>
size_t block_pixels_workspace(const eqc_blocks* a) {
    return wrong_list(a) ? 0 : Covered(*a, nullptr).arena.used();
}
template <class T>
int block_pixels(const eqc_blocks* a, void* workspace) {
    if (wrong_list(a) || !workspace || !a->pixel_count || (a->rows > 0 && !a->index)) return EQC_BAD_ARGUMENT;
    if (a->images * a->height * a->width > 0 && !a->pixels) return EQC_BAD_ARGUMENT;
    Covered(*a, workspace).run();
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE(block_gather, eqc_blocks, eqc::block_gather)
EQC_DEFINE(block_scatter, eqc_blocks, eqc::block_scatter)
EQC_DEFINE(block_pixels, eqc_blocks, eqc::block_pixels)
