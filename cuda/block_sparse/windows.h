/* Windows over images and lists that the operations of this family share on the CPU. */
#ifndef EQC_BLOCK_SPARSE_WINDOWS_H
#define EQC_BLOCK_SPARSE_WINDOWS_H

#include "../common/arena.h"
#include "../common/sizes.h"
#include "block_sparse.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* How many entries count of a list with room for `capacity`; count: [1] or NULL. */
EQC_INLINE int64_t number_listed(const int32_t* count, int64_t capacity) {
    return count ? smaller(larger(*count, 0), capacity) : capacity;
}

/* Whether all positions are in [0, rows). */
EQC_INLINE bool within(const int32_t* positions, int64_t count, int64_t rows) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; ++i) most = uint32_t(positions[i]) > most ? uint32_t(positions[i]) : most;
    return count == 0 || most < rows;
}

/* The part [begin, end) of a window along one axis that is inside the image, and how much of it is before that. */
struct Span {
    int64_t begin, end, skipped;
    bool empty() const { return begin >= end; }
};

/* Sizes may be anything that 64 bits hold, so the border of a window may need more. */
EQC_INLINE Span span(int64_t offset, int64_t stride, int64_t position, int64_t window, int64_t extent) {
    const __int128 first = __int128(stride) * position + offset, end = first + window;
    if (end <= 0 || first >= extent) return {0, 0, 0};
    const int64_t begin = first < 0 ? 0 : int64_t(first);
    return {begin, end > extent ? extent : int64_t(end), int64_t(begin - first)};
}

template <class Arguments>
inline bool wrong_windows(const Arguments& a) {
    return a.images < 0 || a.height < 0 || a.width < 0 || a.window_height < 1 || a.window_width < 1 ||
           a.stride_height < 1 || a.stride_width < 1 || a.threads < 0 ||
           too_many(largest_position, a.images, a.height, a.width);
}

/* How many pieces of work to take together, so that an item is worth handing to a thread. */
EQC_INLINE int64_t grouped(int64_t cost, int64_t worth) { return cost >= worth ? 1 : worth / larger(cost, 1); }

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
