/* The list of windows, and the rows of all images in bands. */
#ifndef EQC_BLOCK_SPARSE_BANDS_H
#define EQC_BLOCK_SPARSE_BANDS_H

#include "../common/parallel.h"
#include "windows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* A row of the list: where its window is. */
struct Window {
    int64_t image;
    Span y, x;
    bool empty() const { return y.empty() || x.empty(); }
};

/* A window of an image that there is not is empty. */
EQC_INLINE Window window_of(const eqc_blocks& a, int64_t r) {
    const int32_t* entry = a.index + 3 * r;
    Window window{entry[0], {0, 0, 0}, {0, 0, 0}};
    if (entry[0] < 0 || entry[0] >= a.images) return window;
    window.y = span(a.offset_height, a.stride_height, entry[1], a.window_height, a.height);
    window.x = span(a.offset_width, a.stride_width, entry[2], a.window_width, a.width);
    return window;
}

/* Every thread works on its own rows of the images and passes the whole list, in order, so what a pixel gets never
 * depends on the bands. Pieces of the list that do not meet a band are passed over at once. */
class Bands {
   public:
    /* A band has about `height` rows. */
    Bands(const eqc_blocks& a, Arena& arena)
        : a_(a), ends_(arena.take<int64_t>(2 * ((a.rows + piece - 1) / piece))) {}

    /* body(first row, end, windows) for each band; windows(f) calls f(r, window), cut to the band, for those inside. */
    template <class Body>
    void run(int threads, int64_t height, const Body& body) const {
        const int64_t rows = a_.images * a_.height, listed = number_listed(a_.count, a_.rows);
        const int64_t pieces = (listed + piece - 1) / piece;
        const int64_t bands = (rows + height - 1) / height;
        if (bands > 1)
            parallel_for(threads, (pieces + 63) / 64, [&](int64_t item, int) { measure(64 * item, listed); });
        parallel_for(threads, bands, [&](int64_t band, int) {
            const int64_t first = band * height, end = smaller(rows, first + height);
            body(first, end, [&](const auto& use) EQC_INLINE_LAMBDA {
                for (int64_t k = 0; k < pieces; ++k) {
                    if (bands > 1 && (ends_[2 * k] >= end || ends_[2 * k + 1] <= first)) continue;
                    for (int64_t r = k * piece; r < smaller(listed, (k + 1) * piece); ++r) {
                        Window window = window_of(a_, r);
                        cut(window, first, end);
                        if (!window.empty()) use(r, window);
                    }
                }
            });
        });
    }

   private:
    static constexpr int64_t piece = 16;

    /* Which rows of the images 64 pieces from `start` meet. */
    void measure(int64_t start, int64_t listed) const {
        for (int64_t k = start; k < start + 64 && k * piece < listed; ++k) {
            int64_t first = INT64_MAX, end = 0;
            for (int64_t r = k * piece; r < smaller(listed, (k + 1) * piece); ++r) {
                const Window window = window_of(a_, r);
                if (window.empty()) continue;
                first = smaller(first, window.image * a_.height + window.y.begin);
                end = larger(end, window.image * a_.height + window.y.end);
            }
            ends_[2 * k] = first, ends_[2 * k + 1] = end;
        }
    }

    void cut(Window& window, int64_t first, int64_t end) const {
        const int64_t top = window.image * a_.height, before = first - top - window.y.begin;
        if (before > 0) window.y.begin += before, window.y.skipped += before;
        window.y.end = smaller(window.y.end, end - top);
    }

    const eqc_blocks& a_;
    int64_t* ends_;
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
