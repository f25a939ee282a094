/* Where pixels of an output lie on an input, and which rows some sites read. */
#ifndef EQC_BLOCK_SPARSE_PIXELS_H
#define EQC_BLOCK_SPARSE_PIXELS_H

#include "../common/arena.h"
#include "../common/parallel.h"

namespace eqc {
inline namespace EQC_ISA {

/* A kernel over images; all numbers fit into int32, and so does every coordinate of a tap. */
struct Geometry {
    int32_t height, width, out_height, out_width, kernel_height, kernel_width;
    int32_t stride_height, stride_width, pad_height, pad_width, dilation_height, dilation_width;
};

/* Cuts flat positions into coordinates; neighbours in a list mostly lie in the same line. */
class Coordinates {
   public:
    Coordinates(int32_t height, int32_t width) : height_(height), width_(width) {}
    void move(int32_t position) {
        if (position < line_ || position - line_ >= width_) {
            const int32_t lines = position / width_;
            image_ = lines / height_;
            h_ = lines % height_;
            line_ = lines * width_;
        }
        w_ = position - line_;
    }
    int32_t image() const { return image_; }
    int32_t h() const { return h_; }
    int32_t w() const { return w_; }

   private:
    int32_t height_, width_, line_ = 0, image_ = 0, h_ = 0, w_ = 0;
};

/* The most sites whose coordinates are worked out at once. */
constexpr int64_t most_tile = 384;

/* Rows of the input that taps of output positions read; returns how many there are. */
inline int64_t rows_read(const Geometry& g, const int32_t* sites, int64_t count, int32_t* rows, int64_t step) {
    alignas(64) int32_t h[most_tile], w[most_tile];
    alignas(64) uint32_t base[most_tile]; /* modulo 2^32, as the first tap may be far outside */
    Coordinates at(g.out_height, g.out_width);
    for (int64_t i = 0; i < count; ++i) {
        at.move(sites[i]);
        h[i] = at.h() * g.stride_height - g.pad_height;
        w[i] = at.w() * g.stride_width - g.pad_width;
        base[i] = (uint32_t(at.image()) * uint32_t(g.height) + uint32_t(h[i])) * uint32_t(g.width) + uint32_t(w[i]);
    }
    const uint32_t height = uint32_t(g.height), width = uint32_t(g.width);
    int64_t found = 0;
    for (int32_t i = 0; i < g.kernel_height; ++i)
        for (int32_t j = 0; j < g.kernel_width; ++j, rows += step) {
            const int32_t down = i * g.dilation_height, right = j * g.dilation_width;
            const uint32_t offset = uint32_t(down) * width + uint32_t(right);
            int32_t inside = 0;
            for (int64_t s = 0; s < count; ++s) {
                const int32_t here = uint32_t(h[s] + down) < height ? int32_t(base[s] + offset) : -1;
                const int32_t row = uint32_t(w[s] + right) < width ? here : -1;
                rows[s] = row;
                inside += row >= 0;
            }
            found += inside;
        }
    return found;
}

/* Calls body(flat input position) for each pixel that a tap of an output position reads. */
template <class Body>
EQC_INLINE void for_pixels_read(const Geometry& g, const Coordinates& at, const Body& body) {
    for (int32_t i = 0; i < g.kernel_height; ++i) {
        const int32_t h = at.h() * g.stride_height - g.pad_height + i * g.dilation_height;
        if (uint32_t(h) >= uint32_t(g.height)) continue;
        const int32_t line = (at.image() * g.height + h) * g.width;
        for (int32_t j = 0; j < g.kernel_width; ++j) {
            const int32_t w = at.w() * g.stride_width - g.pad_width + j * g.dilation_width;
            if (uint32_t(w) < uint32_t(g.width)) body(line + w);
        }
    }
}

/* A set of rows, marked by many threads, and then its members as an ascending list. */
class RowSet {
   public:
    RowSet(int64_t rows, int64_t most_members, Arena& arena)
        : rows_(rows),
          marks_(arena.take<uint8_t>(rows)),
          starts_(arena.take<int32_t>(blocks() + 1)),
          members_(arena.take<int32_t>(smaller(rows, most_members))) {}

    static constexpr int64_t block_rows = 8192;
    int64_t blocks() const { return (rows_ + block_rows - 1) / block_rows; }

    void clear(int threads) {
        parallel_for(threads, blocks(), [&](int64_t block, int) {
            std::memset(marks_ + block * block_rows, 0, size_t(rows_in(block)));
        });
    }
    EQC_INLINE void mark(int64_t row) { __atomic_store_n(marks_ + row, uint8_t(1), __ATOMIC_RELAXED); }

    /* Calls absent(first, count) for the runs of rows that are not in the set. */
    template <class Absent>
    void list(int threads, const Absent& absent) {
        parallel_for(threads, blocks(), [&](int64_t block, int) {
            const uint8_t* mark = marks_ + block * block_rows;
            int32_t count = 0;
            for (int64_t i = 0; i < rows_in(block); ++i) count += mark[i];
            starts_[block + 1] = count;
        });
        starts_[0] = 0;
        for (int64_t block = 0; block < blocks(); ++block) starts_[block + 1] += starts_[block];
        parallel_for(threads, blocks(), [&](int64_t block, int) {
            const int64_t first = block * block_rows, rows = rows_in(block);
            const uint8_t* mark = marks_ + first;
            int32_t* to = members_ + starts_[block];
            int64_t gap = 0; /* where the rows that are absent before i begin */
            for (int64_t i = 0; i < rows;) {
                uint64_t eight = 1;
                if (i + 8 <= rows) std::memcpy(&eight, mark + i, 8);
                const int64_t end = i + (i + 8 <= rows ? 8 : 1);
                for (; i < end && eight != 0; ++i) {
                    if (!mark[i]) continue;
                    if (i > gap) absent(first + gap, i - gap);
                    *to++ = int32_t(first + i);
                    gap = i + 1;
                }
                i = end;
            }
            if (rows > gap) absent(first + gap, rows - gap);
        });
    }
    const int32_t* members() const { return members_; }
    int64_t count() const { return starts_[blocks()]; }

   private:
    int64_t rows_in(int64_t block) const { return smaller(block_rows, rows_ - block * block_rows); }
    int64_t rows_;
    uint8_t* marks_;
    int32_t *starts_, *members_;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
