/* Active windows of a mask, on the CPU.
 *
 * Maximum: the mask is read once and becomes bits, 64 pixels a word. A row of windows is the OR of its rows of words,
 * and a window is active when one of its bits is set. Average: sums of the columns of a row of windows, in double, then
 * sums of these along each window; no sum ever holds a pixel outside of its window, so NaN and infinity stay where they
 * are. Both give bits again, one a window, which are counted a row at a time and listed in order.
 */
#include "thresholds.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

struct Masks {
    const eqc_mask& a;
    Arena arena;
    Threshold threshold;
    int threads;
    bool average, shifted; /* the windows of a row are found by shifting words */
    BitRows windows, pixels;
    int64_t shifted_words, row_words, row_sums;
    int64_t *column_begin, *column_end; /* [grid_width] */
    uint64_t* row_room;
    double* sum_room;

    Masks(const eqc_mask& arguments, void* workspace)
        : a(arguments),
          arena(workspace),
          threshold(a.tolerance),
          threads(thread_count(a.threads, a.images * (a.height + a.grid_height))),
          average(a.flags & EQC_BS_AVERAGE),
          shifted(!average && a.stride_width == 1 && a.window_width <= 512),
          windows(a.images * a.grid_height, a.grid_width, arena),
          pixels(average ? 0 : a.images * a.height, a.width, arena),
          shifted_words(shifted ? words_for(a.grid_width + a.window_width) + 1 : 0),
          row_words(padded(average ? 0 : pixels.words + 1 + shifted_words, 8)),
          row_sums(average ? padded(a.width, 8) : 0) {
        column_begin = arena.take<int64_t>(a.grid_width);
        column_end = arena.take<int64_t>(a.grid_width);
        row_room = arena.take<uint64_t>(threads * row_words);
        sum_room = arena.take<double>(threads * row_sums);
    }

    /* Finds the active windows; returns how many there are. */
    template <class Source>
    int64_t reduce(const Source* m) {
        for (int64_t j = 0; j < a.grid_width; ++j) {
            const Span x = span(a.offset_width, a.stride_width, j, a.window_width, a.width);
            column_begin[j] = x.begin, column_end[j] = x.end;
        }
        if (!average) compare(m);
        const int64_t seen = smaller(a.window_height, a.height);
        const int64_t cost = average ? seen * a.width : seen * pixels.words + (shifted ? pixels.words : a.grid_width);
        const int64_t group = grouped(cost, 16384);
        parallel_for(threads, (windows.rows + group - 1) / group, [&](int64_t item, int thread) {
            for (int64_t i = item * group; i < smaller(windows.rows, (item + 1) * group); ++i) {
                const int64_t image = i / a.grid_height;
                const Span y = span(a.offset_height, a.stride_height, i % a.grid_height, a.window_height, a.height);
                if (average)
                    sum_row(m + (image * a.height + y.begin) * a.width, y, sum_room + thread * row_sums,
                            windows.row(i));
                else
                    or_row(image * a.height, y, row_room + thread * row_words, windows.row(i));
                windows.count(i);
            }
        });
        return windows.add_up();
    }

    template <class Source>
    void compare(const Source* m) {
        const int64_t group = grouped(a.width, 16384);
        parallel_for(threads, (pixels.rows + group - 1) / group, [&](int64_t item, int) {
            for (int64_t i = item * group; i < smaller(pixels.rows, (item + 1) * group); ++i)
                threshold.row(m + i * a.width, a.width, pixels.row(i));
        });
    }

    void or_row(int64_t first_row, const Span& y, uint64_t* row, uint64_t* active) const {
        const int64_t words = pixels.words;
        if (y.empty()) {
            std::memset(active, 0, size_t(windows.words) * sizeof(uint64_t));
            return;
        }
        std::memcpy(row, pixels.row(first_row + y.begin), size_t(words) * sizeof(uint64_t));
        for (int64_t i = y.begin + 1; i < y.end; ++i) {
            const uint64_t* other = pixels.row(first_row + i);
            for (int64_t k = 0; k < words; ++k) row[k] |= other[k];
        }
        row[words] = 0;
        if (shifted)
            shift_row(row, row + words + 1, active);
        else
            for_windows(active,
                        [&](int64_t j) EQC_INLINE_LAMBDA { return any_bit(row, column_begin[j], column_end[j]); });
    }

    /* Bit j of `active` is the OR of bits j, ..., j + window_width - 1 of the row that begins at the offset: by ORs
     * with itself, shifted by distances that grow. */
    void shift_row(const uint64_t* row, uint64_t* moved, uint64_t* active) const {
        for (int64_t k = 0; k < shifted_words; ++k) moved[k] = word_at(row, a.offset_width, 64 * k);
        for (int64_t covered = 1; covered < a.window_width;) {
            const int64_t distance = smaller(covered, a.window_width - covered), step = distance / 64;
            const int shift = int(distance % 64);
            for (int64_t k = 0; k < shifted_words; ++k) {
                const uint64_t low = k + step < shifted_words ? moved[k + step] : 0;
                const uint64_t high = k + step + 1 < shifted_words ? moved[k + step + 1] : 0;
                moved[k] |= low >> shift | high << 1 << (63 - shift);
            }
            covered += distance;
        }
        std::memcpy(active, moved, size_t(windows.words) * sizeof(uint64_t));
        if (windows.width % 64) active[windows.words - 1] &= lowest(windows.width % 64);
    }

    /* The 64 bits of a row from bit offset + at, 0 outside of it; a zero word follows the row. */
    uint64_t word_at(const uint64_t* row, int64_t offset, int64_t at) const {
        int64_t first;
        if (__builtin_add_overflow(offset, at, &first) || first <= -64 || first >= a.width) return 0;
        if (first < 0) return row[0] << -first;
        return row[first / 64] >> first % 64 | row[first / 64 + 1] << 1 << (63 - first % 64);
    }

    template <class Source>
    void sum_row(const Source* m, const Span& y, double* sums, uint64_t* active) const {
        column_sums(m, y.end - y.begin, a.width, sums);
        const double area = double(a.window_height) * double(a.window_width);
        for_windows(active, [&](int64_t j) EQC_INLINE_LAMBDA {
            return threshold.reached(sum_of(sums + column_begin[j], column_end[j] - column_begin[j]) / area);
        });
    }

    template <class Active>
    EQC_INLINE void for_windows(uint64_t* active, const Active& is_active) const {
        for (int64_t k = 0; k < windows.words; ++k) {
            const int64_t end = smaller(64 * (k + 1), windows.width);
            uint64_t word = 0;
            for (int64_t j = 64 * k; j < end; ++j) word |= uint64_t(is_active(j)) << (j - 64 * k);
            active[k] = word;
        }
    }

    void list_triples() const {
        windows.for_rows(threads, [&](int64_t i, int64_t first, int64_t) {
            int32_t* out = a.index + 3 * first;
            const int32_t image = int32_t(i / a.grid_height), position = int32_t(i % a.grid_height);
            for_bits(windows.row(i), windows.words, [&](int64_t j) EQC_INLINE_LAMBDA {
                out[0] = image, out[1] = position, out[2] = int32_t(j);
                out += 3;
            });
        });
    }
};

bool wrong(const eqc_mask* a) {
    return !a || wrong_windows(*a) || too_many(largest_position, a->images, a->grid_height, a->grid_width);
}

template <class T>
size_t masks_workspace(const eqc_mask* a) {
    return wrong(a) ? 0 : Masks(*a, nullptr).arena.used();
}

bool wrong_call(const eqc_mask* a, const void* workspace) {
    if (wrong(a) || !workspace || !a->count) return true;
    const bool pixels = a->images * a->height * a->width > 0, room = a->images * a->grid_height * a->grid_width > 0;
    return (pixels && !a->mask && !a->bytes) || (room && !a->index);
}

template <class T>
int64_t active_windows(Masks& masks) {
    const eqc_mask& a = masks.a;
    return a.bytes ? masks.reduce(a.bytes) : masks.reduce(static_cast<const T*>(a.mask));
}

template <class T>
size_t mask_blocks_workspace(const eqc_mask* a) {
    return masks_workspace<T>(a);
}
template <class T>
int mask_blocks(const eqc_mask* a, void* workspace) {
    if (wrong_call(a, workspace)) return EQC_BAD_ARGUMENT;
    Masks masks(*a, workspace);
    int64_t count = active_windows<T>(masks);
    masks.list_triples();
    if (count == 0 && (a->flags & EQC_BS_FIRST) && masks.windows.rows * masks.windows.width > 0) {
        a->index[0] = a->index[1] = a->index[2] = 0;
        count = 1;
    }
    *a->count = int32_t(count);
    return EQC_OK;
}

template <class T>
size_t mask_pixels_workspace(const eqc_mask* a) {
    return masks_workspace<T>(a);
}
template <class T>
int mask_pixels(const eqc_mask* a, void* workspace) {
    if (wrong_call(a, workspace)) return EQC_BAD_ARGUMENT;
    Masks masks(*a, workspace);
    *a->count = int32_t(active_windows<T>(masks));
    masks.windows.write_flat(masks.threads, a->index);
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE(mask_blocks, eqc_mask, eqc::mask_blocks)
EQC_DEFINE(mask_pixels, eqc_mask, eqc::mask_pixels)
