/* Blocks of images by a list of windows: taken out, put back, and which pixels they cover.
 *
 * All three move memory and compute nothing, so the floor is the bytes: block_gather reads each window once and writes
 * the stack, block_scatter reads base or block and writes y. What is written is written by whoever owns it: a thread
 * asks which rows cover its pixel instead of rows racing for pixels, so results do not depend on who comes first and
 * need no atomic sums. It finds out from a map of the grid cells whose windows can meet an image, which the size of the
 * images bounds, not the numbers in the list: per cell its last row or, for sums, its rows in ascending order as a
 * chain. A pixel's cells are a rectangle of at most ceil(window / stride) along each axis.
 */
#include <climits>

#include "compaction.cuh"
#include "launch.cuh"

namespace {

using eqc::ceil_div;
using eqc::Divider;
using eqc::kTileThreads;
using eqc::RowStart;

constexpr int kAhead = 4;                          // vectors of a thread in flight
constexpr int64_t kTile = kTileThreads * kAhead;   // vectors of a block
constexpr int kBlocks = 3;                         // on a multiprocessor at least; says how many registers there are
constexpr int kSide = 32;                          // pixels, and channels at most, of a tile that is transposed
constexpr int kPitch = kSide + 1;

/* Windows along one axis: those that can meet the image are the cells. */
struct Axis {
    int64_t first;   // grid position of cell 0
    int64_t offset;  // where its window begins
    int64_t stride;
    int cells;
    int window;
    int extent;
    Divider by_stride;

    Axis(int64_t extent_, int64_t window_, int64_t stride_, int64_t offset_)
        : stride(stride_), window(int(window_)), extent(int(extent_)), by_stride(stride_) {
        const int64_t before = -offset_ - window_;  // a window that begins there ends in front of the image
        first = before < 0 ? 0 : before / stride_ + 1;
        offset = offset_ + stride_ * first;
        cells = offset >= extent_ ? 0 : int(ceil_div(extent_ - offset, stride_));
    }

    /* The cells whose windows have a position: first_of to last_of, none when that is less. */
    __device__ __forceinline__ int first_of(int position) const {
        const int64_t past = position - offset - window + 1;
        return past <= 0 ? 0 : int(by_stride.quotient(unsigned(past + stride - 1)));
    }
    __device__ __forceinline__ int last_of(int position) const {
        return position < offset ? -1 : int(by_stride.quotient(unsigned(position - offset)));
    }
    __device__ __forceinline__ int inside(int position, int cell) const {
        return int(position - offset - stride * cell);
    }
    __device__ __forceinline__ int64_t begin(int32_t place) const { return offset + stride * (place - first); }
};

struct Geometry {
    int64_t rows;
    const int32_t* index;
    const int32_t* count;
    int64_t images;
    Axis down;
    Axis across;
    int channels;

    explicit Geometry(const eqc_blocks& a)
        : rows(a.rows),
          index(a.index),
          count(a.count),
          images(a.images),
          down(a.height, a.window_height, a.stride_height, a.offset_height),
          across(a.width, a.window_width, a.stride_width, a.offset_width),
          channels(int(a.channels)) {}

    int64_t cells() const { return images * down.cells * across.cells; }
    int64_t pixels() const { return images * down.extent * across.extent; }
    __host__ __device__ __forceinline__ int64_t window() const { return int64_t(down.window) * across.window; }
};

/* Rows by cell. */
struct Map {
    int32_t* head = nullptr;  // [cells] the last row or, with chains, the first; -1: none. All bytes 0xff at first
    int32_t* next = nullptr;  // [rows] the row after it in the same cell, -1: none
    int64_t cells = 0;
    int64_t rows = 0;

    Map() = default;
    Map(eqc::Space& space, const Geometry& g, bool chains)
        : head(space.take<int32_t>(g.cells())),
          next(chains ? space.take<int32_t>(g.rows) : nullptr),
          cells(g.cells()),
          rows(g.rows) {}

    __device__ __forceinline__ auto heads() const { return eqc_view(head, cells); }
    __device__ __forceinline__ auto nexts() const { return eqc_view(next, rows); }
};

/* Puts every row into the map: a later row over an earlier one, or at the head of its cell's chain. */
__global__ void __launch_bounds__(kTileThreads) map_rows(Geometry g, Map map) {
    const int64_t row = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
    if (row >= eqc::entries(g.count, g.rows)) {
        return;
    }
    const int32_t image = g.index[3 * row];
    const int64_t i = g.index[3 * row + 1] - g.down.first;
    const int64_t j = g.index[3 * row + 2] - g.across.first;
    const bool meets = image >= 0 && image < g.images && i >= 0 && i < g.down.cells && j >= 0 && j < g.across.cells;
    if (map.next == nullptr) {
        if (meets) {
            atomicMax(map.heads() + ((image * int64_t(g.down.cells) + i) * g.across.cells + j), int32_t(row));
        }
        return;
    }
    map.nexts()[row] =
        meets ? atomicExch(map.heads() + ((image * int64_t(g.down.cells) + i) * g.across.cells + j), int32_t(row)) : -1;
}

/* Sorts each cell's chain, which nearly always is one row: a merge sort from runs of one upwards. */
__global__ void __launch_bounds__(kTileThreads) order_chains(Map map) {
    const auto heads = map.heads();
    const auto next = map.nexts();
    const int64_t cell = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
    int32_t head = cell < map.cells ? int32_t(heads[cell]) : -1;
    if (head < 0 || next[head] < 0) {
        return;
    }
    int merges = 2;
    for (int64_t run = 1; merges > 1; run *= 2) {
        int32_t left = head;
        int32_t tail = -1;
        merges = 0;
        while (left >= 0) {
            ++merges;
            int32_t right = left;
            int64_t lefts = 0;
            for (; lefts < run && right >= 0; ++lefts) {
                right = next[right];
            }
            int64_t rights = run;
            while (lefts > 0 || (rights > 0 && right >= 0)) {
                const bool from_right = lefts == 0 || (rights > 0 && right >= 0 && right < left);
                const int32_t taken = from_right ? right : left;
                if (from_right) {
                    right = next[right];
                    --rights;
                } else {
                    left = next[left];
                    --lefts;
                }
                if (tail < 0) {
                    head = taken;
                } else {
                    next[tail] = taken;
                }
                tail = taken;
            }
            left = right;
        }
        next[tail] = -1;
    }
    heads[cell] = head;
}

/* A pixel of an image, and the cells whose windows have it. */
struct Pixel {
    int64_t corner;  // cell (0, 0) of its image
    int h, w;
    int top, bottom, left, right;

    __device__ __forceinline__ Pixel(const Geometry& g, int64_t image, int h_, int w_)
        : corner(image * g.down.cells * g.across.cells),
          h(h_),
          w(w_),
          top(g.down.first_of(h_)),
          bottom(g.down.last_of(h_)),
          left(g.across.first_of(w_)),
          right(g.across.last_of(w_)) {}
    /* By flat position. */
    __device__ __forceinline__ Pixel(const Geometry& g, int64_t flat, const Divider& height, const Divider& width)
        : Pixel(g, height.quotient(width.quotient(unsigned(flat))),
                int(height.remainder(width.quotient(unsigned(flat)))), int(width.remainder(unsigned(flat)))) {}
};

/* A row, and a position within its window. */
struct Cover {
    int32_t row;
    int position;
};

__device__ __forceinline__ Cover cover_at(const Geometry& g, const Pixel& p, int32_t row, int i, int j) {
    return {row, g.down.inside(p.h, i) * g.across.window + g.across.inside(p.w, j)};
}

/* The last row that covers a pixel, -1: none. The cells are few: unrolled further, the loop takes registers only. */
__device__ __forceinline__ Cover owner(const Geometry& g, const Map& map, const Pixel& p) {
    const auto heads = map.heads();
    int32_t best = -1;
    int best_i = 0;
    int best_j = 0;
#pragma unroll 1
    for (int i = p.top; i <= p.bottom; ++i) {
#pragma unroll 2
        for (int j = p.left; j <= p.right; ++j) {
            const int32_t row = heads[p.corner + int64_t(i) * g.across.cells + j];
            if (row > best) {
                best = row;
                best_i = i;
                best_j = j;
            }
        }
    }
    return cover_at(g, p, best, best_i, best_j);
}

__device__ __forceinline__ bool is_covered(const Geometry& g, const Map& map, const Pixel& p) {
    const auto heads = map.heads();
    for (int i = p.top; i <= p.bottom; ++i) {
        for (int j = p.left; j <= p.right; ++j) {
            if (heads[p.corner + int64_t(i) * g.across.cells + j] >= 0) {
                return true;
            }
        }
    }
    return false;
}

/* Calls visit(cover) for every row that covers a pixel, in ascending order, by chains in ascending order. Lists in
 * raster order need the cells one after the other; else each row is looked for among them. */
template <class Visit>
__device__ __forceinline__ void for_covers(const Geometry& g, const Map& map, const Pixel& p, const Visit& visit) {
    const auto heads = map.heads();
    const auto next = map.nexts();
    int32_t last = -1;
    bool ascending = true;
    for (int i = p.top; i <= p.bottom && ascending; ++i) {
        for (int j = p.left; j <= p.right && ascending; ++j) {
            for (int32_t row = heads[p.corner + int64_t(i) * g.across.cells + j]; row >= 0; row = next[row]) {
                ascending = ascending && row > last;
                last = row;
            }
        }
    }
    if (ascending) {
        for (int i = p.top; i <= p.bottom; ++i) {
            for (int j = p.left; j <= p.right; ++j) {
                for (int32_t row = heads[p.corner + int64_t(i) * g.across.cells + j]; row >= 0; row = next[row]) {
                    visit(cover_at(g, p, row, i, j));
                }
            }
        }
        return;
    }
    last = -1;
    for (;;) {
        Cover best{INT_MAX, 0};
        for (int i = p.top; i <= p.bottom; ++i) {
            for (int j = p.left; j <= p.right; ++j) {
                int32_t row = heads[p.corner + int64_t(i) * g.across.cells + j];
                while (row >= 0 && row <= last) {
                    row = next[row];
                }
                if (row >= 0 && row < best.row) {
                    best = cover_at(g, p, row, i, j);
                }
            }
        }
        if (best.row == INT_MAX) {
            return;
        }
        visit(best);
        last = best.row;
    }
}

/* ---- block_gather ----------------------------------------------------------------------------------------------- */

template <class T>
struct Gather {
    Geometry g;
    Map map;  // empty unless only owned pixels are wanted
    const T* x;
    T* blocks;
    int64_t vectors;     // of all blocks
    Divider of_block;    // vectors of a block
    Divider of_line;     // vectors of a line of a block
    Divider of_pixel;    // vectors of a pixel
};

/* Whether no later row covers a pixel in the image or, without kOwned, that does not matter. */
template <bool kOwned, class T>
__device__ __forceinline__ bool is_owned(const Gather<T>& p, int64_t row, int64_t image, int64_t h, int64_t w) {
    return !kOwned || owner(p.g, p.map, Pixel(p.g, image, int(h), int(w))).row == row;
}

/* Blocks as [rows, h, w, C], kAhead vectors of V (elements of T, or 16 bytes) a thread. A line of a window is one piece
 * of memory in the block and in the image alike. */
template <class T, class V, bool kOwned>
__global__ void __launch_bounds__(kTileThreads, kBlocks) gather(Gather<T> p) {
    constexpr int kWidth = int(sizeof(V) / sizeof(T));
    const int64_t rows = eqc::entries(p.g.count, p.g.rows);
    const auto blocks = eqc_view(p.blocks, p.vectors * kWidth);
    const int64_t first = int64_t(blockIdx.x) * kTile;
    const RowStart start(first, p.of_block);
    int32_t triple[kAhead][3];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {  // asked for together, so that the way to them is gone once
        const RowStart at = start.after(unsigned(k * kTileThreads + threadIdx.x), p.of_block);
#pragma unroll
        for (int part = 0; part < 3; ++part) {
            triple[k][part] = at.row < rows ? p.g.index[3 * at.row + part] : -1;
        }
    }
    V found[kAhead] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
        const RowStart at = start.after(unsigned(k * kTileThreads + threadIdx.x), p.of_block);
        const int64_t image = triple[k][0];
        const unsigned line = p.of_line.quotient(at.item);
        const unsigned in_line = at.item - line * p.of_line.divisor();
        const int64_t h = p.g.down.begin(triple[k][1]) + line;
        const int64_t left = p.g.across.begin(triple[k][2]);
        const int64_t per_pixel = p.of_pixel.divisor();
        const bool meets = image >= 0 && image < p.g.images && h >= 0 && h < p.g.down.extent &&
                           left > -p.g.across.window && left < p.g.across.extent;
        const int64_t in_image = (meets ? left : 0) * per_pixel + in_line;
        if (meets && in_image >= 0 && in_image < p.g.across.extent * per_pixel &&
            is_owned<kOwned>(p, at.row, image, h, left + p.of_pixel.quotient(in_line))) {
            const int64_t from = (image * p.g.down.extent + h) * p.g.across.extent * per_pixel + in_image;
            found[k] = eqc_load_vector<V>(p.x + from * kWidth);
        }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
        const int64_t vector = first + k * kTileThreads + threadIdx.x;
        if (vector < p.vectors) {
            eqc_store_vector<V>(blocks + vector * kWidth, found[k]);
        }
    }
}

/* How a block of threads takes a tile of kSide pixels and up to kSide channels, once with the channels next to each
 * other and once with the pixels. */
struct Side {
    int pixels;       // of a window, or of all images
    int pixel_tiles;
    int channel_tiles;
    Divider of_tile;  // channels

    Side(int64_t pixels_, int64_t channels)
        : pixels(int(pixels_)),
          pixel_tiles(int(ceil_div(pixels_, kSide))),
          channel_tiles(int(ceil_div(channels, kSide))),
          of_tile(channels < kSide ? channels : kSide) {}

    __host__ __device__ __forceinline__ int64_t tiles() const { return int64_t(pixel_tiles) * channel_tiles; }
};

/* Blocks as [rows, C, h, w]. */
template <class T, bool kOwned>
__global__ void __launch_bounds__(kTileThreads) gather_transposed(Gather<T> p, Side side) {
    EQC_SHARED_ARRAY(T, tile, kSide * kPitch);
    const int64_t rows = eqc::entries(p.g.count, p.g.rows);
    const int lane = int(threadIdx.x) % 32;
    const int channels = p.g.channels;
    const int of_tile = int(side.of_tile.divisor());
    const auto blocks = eqc_view(p.blocks, p.g.rows * channels * side.pixels);
    const int64_t row = blockIdx.x / side.tiles();
    const int of_row = int(blockIdx.x - row * side.tiles());
    const int position0 = of_row / side.channel_tiles * kSide;
    const int channel0 = of_row % side.channel_tiles * kSide;
    if (row < rows) {
        const int64_t image = p.g.index[3 * row];
        const int64_t top = p.g.down.begin(p.g.index[3 * row + 1]);
        const int64_t left = p.g.across.begin(p.g.index[3 * row + 2]);
        for (int at = int(threadIdx.x); at < kSide * of_tile; at += kTileThreads) {
            const int pixel = int(side.of_tile.quotient(unsigned(at)));
            const int channel = at - pixel * of_tile;
            const unsigned line = p.of_line.quotient(unsigned(position0 + pixel));
            const int64_t h = top + line;
            const int64_t w = left + (position0 + pixel - line * p.of_line.divisor());
            const bool inside = position0 + pixel < side.pixels && channel0 + channel < channels && image >= 0 &&
                                image < p.g.images && h >= 0 && h < p.g.down.extent && w >= 0 &&
                                w < p.g.across.extent && is_owned<kOwned>(p, row, image, h, w);
            const int64_t flat = (image * p.g.down.extent + h) * p.g.across.extent + w;
            tile[pixel * kPitch + channel] = inside ? p.x[flat * channels + channel0 + channel] : T(0);
        }
    }
    __syncthreads();
    for (int channel = int(threadIdx.x) / 32; channel < of_tile && channel0 + channel < channels;
         channel += eqc::kTileWarps) {
        if (position0 + lane < side.pixels) {
            blocks[(row * channels + channel0 + channel) * side.pixels + position0 + lane] =
                row < rows ? T(tile[lane * kPitch + channel]) : T(0);
        }
    }
}

/* ---- block_scatter ---------------------------------------------------------------------------------------------- */

template <class T>
struct Scatter {
    Geometry g;
    Map map;
    const T* blocks;  // NULL: zeros
    const T* base;    // NULL: zeros
    T* y;
    int64_t vectors;   // of y
    Divider of_pixel;  // vectors of a pixel
    Divider height;
    Divider width;

    __device__ __forceinline__ bool in_place() const { return base == y; }
};

__device__ __forceinline__ void add_to(float& sum, float term) { sum += term; }
__device__ __forceinline__ void add_to(double& sum, double term) { sum += term; }
__device__ __forceinline__ void add_to(float4& sum, const float4& term) {
    sum.x += term.x, sum.y += term.y, sum.z += term.z, sum.w += term.w;
}
__device__ __forceinline__ void add_to(double2& sum, const double2& term) { sum.x += term.x, sum.y += term.y; }

/* Vectors of y of a thread. To find a pixel's rows takes loads of its own, which several at a time hide. */
template <bool kAdd>
constexpr int kVectorsOf = kAdd ? 1 : 2;

/* Blocks as [rows, h, w, C]: each vector of y from its owner or, with kAdd, from all rows that cover it. */
template <class T, class V, bool kAdd>
__global__ void __launch_bounds__(kTileThreads, kBlocks) scatter(Scatter<T> p) {
    constexpr int kWidth = int(sizeof(V) / sizeof(T));
    constexpr int kEach = kVectorsOf<kAdd>;
    const auto y = eqc_view(p.y, p.vectors * kWidth);
    const int64_t window = p.g.window();
    const int64_t first = int64_t(blockIdx.x) * kTileThreads * kEach;
    const RowStart start(first, p.of_pixel);
    V found[kEach] = {};
    bool changes[kEach] = {};
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const int64_t vector = first + k * kTileThreads + threadIdx.x;
        if (vector >= p.vectors) {
            continue;
        }
        const RowStart at = start.after(unsigned(k * kTileThreads + threadIdx.x), p.of_pixel);
        const Pixel pixel(p.g, at.row, p.height, p.width);
        const auto element = [&](const Cover& cover) {
            return ((cover.row * window + cover.position) * p.of_pixel.divisor() + at.item) * kWidth;
        };
        const T* from = p.base == nullptr ? nullptr : p.base + vector * kWidth;
        changes[k] = !p.in_place();
        if (kAdd) {
            bool begun = false;
            const auto begin = [&] {
                if (!begun && from != nullptr) {
                    found[k] = eqc_load_vector<V>(from);
                }
                begun = true;
            };
            for_covers(p.g, p.map, pixel, [&](const Cover& cover) {
                begin();
                changes[k] = true;
                add_to(found[k], p.blocks == nullptr ? V{} : eqc_load_vector<V>(p.blocks + element(cover)));
            });
            if (changes[k]) {
                begin();
            }
        } else {
            const Cover last = owner(p.g, p.map, pixel);
            if (last.row >= 0) {
                changes[k] = true;
                from = p.blocks == nullptr ? nullptr : p.blocks + element(last);
            }
            if (from != nullptr && changes[k]) {
                found[k] = eqc_load_vector<V>(from);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        if (changes[k]) {
            eqc_store_vector<V>(y + (first + k * kTileThreads + threadIdx.x) * kWidth, found[k]);
        }
    }
}

/* Blocks as [rows, C, h, w]: a lane a pixel while blocks are read, a lane a channel for base and y. */
template <class T, bool kAdd>
__global__ void __launch_bounds__(kTileThreads) scatter_transposed(Scatter<T> p, Side side) {
    EQC_SHARED_ARRAY(T, tile, kSide * kPitch);
    EQC_SHARED_ARRAY(int, covered, kSide);
    constexpr int kShare = kSide / eqc::kTileWarps;  // channels of a thread
    const int lane = int(threadIdx.x) % 32;
    const int warp = int(threadIdx.x) / 32;
    const int channels = p.g.channels;
    const int of_tile = int(side.of_tile.divisor());
    const auto y = eqc_view(p.y, p.vectors);
    const int64_t window = p.g.window();
    const int64_t pixel0 = int64_t(blockIdx.x) / side.channel_tiles * kSide;
    const int channel0 = int(int64_t(blockIdx.x) % side.channel_tiles) * kSide;
    const int here = channels - channel0 < of_tile ? channels - channel0 : of_tile;
    const bool there = pixel0 + lane < side.pixels;
    const Pixel pixel(p.g, there ? pixel0 + lane : pixel0, p.height, p.width);
    const bool changes = there && is_covered(p.g, p.map, pixel);
    if (warp == 0) {
        covered[lane] = changes ? 1 : 0;
    }
    if (__syncthreads_or(changes || !p.in_place()) == 0) {
        return;
    }
    T found[kShare] = {};
    if (p.base != nullptr && (kAdd || !p.in_place())) {
        for (int at = int(threadIdx.x); at < kSide * of_tile; at += kTileThreads) {
            const int row = int(side.of_tile.quotient(unsigned(at)));
            const int channel = at - row * of_tile;
            const bool real = pixel0 + row < side.pixels && channel < here;
            tile[row * kPitch + channel] = real ? p.base[(pixel0 + row) * channels + channel0 + channel] : T(0);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kShare; ++k) {
            const int channel = warp + k * eqc::kTileWarps;
            found[k] = channel < here ? T(tile[lane * kPitch + channel]) : T(0);
        }
    }
    const auto take = [&](const Cover& cover) {
#pragma unroll
        for (int k = 0; k < kShare; ++k) {
            const int channel = warp + k * eqc::kTileWarps;
            const bool real = p.blocks != nullptr && channel < here;
            const int64_t plane = cover.row * int64_t(channels) + channel0 + channel;
            const T value = real ? p.blocks[plane * window + cover.position] : T(0);
            found[k] = kAdd ? found[k] + value : value;
        }
    };
    if (changes && kAdd) {
        for_covers(p.g, p.map, pixel, take);
    } else if (changes) {
        take(owner(p.g, p.map, pixel));
    }
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
        const int channel = warp + k * eqc::kTileWarps;
        if (channel < here) {
            tile[lane * kPitch + channel] = found[k];
        }
    }
    __syncthreads();
    for (int at = int(threadIdx.x); at < kSide * of_tile; at += kTileThreads) {
        const int row = int(side.of_tile.quotient(unsigned(at)));
        const int channel = at - row * of_tile;
        if (pixel0 + row < side.pixels && channel < here && (!p.in_place() || covered[row] != 0)) {
            y[(pixel0 + row) * channels + channel0 + channel] = tile[row * kPitch + channel];
        }
    }
}

/* ---- block_pixels ----------------------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(kTileThreads) covered_pixels(Geometry g, Map map, Divider height, Divider width,
                                                               int64_t pixels, int32_t* list_pointer, int32_t* count,
                                                               eqc::TileSums sums) {
    const int64_t tile = eqc::take_tile(sums);
    const int64_t begin = (tile * kTileThreads + threadIdx.x) * kAhead;
    unsigned covered = 0;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
        if (begin + k < pixels && is_covered(g, map, Pixel(g, begin + k, height, width))) {
            covered |= 1u << k;
        }
    }
    const eqc::Placed placed = eqc::place_in_order(sums, tile, unsigned(__popc(covered)));
    const auto list = eqc_view(list_pointer, pixels);
    int64_t to = placed.at;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
        if ((covered >> k & 1u) != 0) {
            list[to++] = int32_t(begin + k);
        }
    }
    if (tile == sums.tiles - 1 && threadIdx.x == 0) {
        *count = int32_t(placed.until);
    }
}

/* ---- The calls -------------------------------------------------------------------------------------------------- */

int check(const eqc_blocks& a) {
    if (eqc::any_below(0, {a.images, a.height, a.width, a.channels, a.rows}) ||
        eqc::any_below(1, {a.window_height, a.window_width, a.stride_height, a.stride_width})) {
        return EQC_BAD_ARGUMENT;
    }
    if (eqc::any_above(eqc::kLargestSize,
                       {a.height, a.width, a.channels, a.window_height, a.window_width, a.stride_height,
                        a.stride_width, a.offset_height, a.offset_width}) ||
        eqc::any_below(-eqc::kLargestSize, {a.offset_height, a.offset_width}) || a.rows > INT32_MAX ||
        a.images > INT32_MAX || eqc::product({a.images, a.height, a.width}, INT32_MAX) < 0 ||
        eqc::product({a.window_height, a.window_width, a.channels}, INT32_MAX - kTile) < 0) {
        return EQC_UNSUPPORTED;
    }
    const Geometry g(a);
    const int64_t most = eqc::kLargestGrid * kTileThreads;
    if (eqc::product({a.images, g.down.cells, g.across.cells}, most) < 0 ||
        eqc::product({a.images, a.height, a.width, a.channels}, most) < 0 ||
        eqc::product({a.rows, a.window_height, a.window_width, a.channels}, most) < 0 ||
        eqc::product({Side(g.pixels(), a.channels).tiles()}, eqc::kLargestGrid) < 0 ||
        eqc::product({a.rows, Side(g.window(), a.channels).tiles()}, eqc::kLargestGrid) < 0) {
        return EQC_UNSUPPORTED;
    }
    return a.rows > 0 && a.index == nullptr ? EQC_BAD_ARGUMENT : EQC_OK;
}

template <class T>
bool in_vectors(int64_t channels, std::initializer_list<const void*> pointers) {
    bool aligned = channels % eqc::Vector16<T>::width == 0;
    for (const void* pointer : pointers) {
        aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    }
    return aligned;
}

void make_map(int& status, const Geometry& g, const Map& map, cudaStream_t stream) {
    if (g.rows > 0) {
        EQC_LAUNCH_CHECKED(status, map_rows, eqc::grid_for(g.rows, kTileThreads), dim3(kTileThreads), 0,
                           stream, g, map);
    }
    if (g.rows > 0 && map.next != nullptr && map.cells > 0) {
        EQC_LAUNCH_CHECKED(status, order_chains, eqc::grid_for(map.cells, kTileThreads), dim3(kTileThreads),
                           0, stream, map);
    }
}

void clear_map(int& status, const Map& map, cudaStream_t stream) {
    eqc::fill_bytes(status, map.head, 0xff, size_t(map.cells) * sizeof(int32_t), stream);
}

bool is_transposed(const eqc_blocks& a) {
    return (a.flags & EQC_BS_TRANSPOSE) != 0 && a.channels > 1 && a.window_height * a.window_width > 1;
}

template <class T, bool kOwned>
void launch_gather(int& status, const eqc_blocks& a, const Geometry& g, const Map& map, cudaStream_t stream) {
    const bool transposed = is_transposed(a);
    const bool vectors = !transposed && in_vectors<T>(a.channels, {a.x, a.blocks});
    const int64_t of_pixel = a.channels / (vectors ? eqc::Vector16<T>::width : 1);
    const Gather<T> p{g,
                      map,
                      static_cast<const T*>(a.x),
                      static_cast<T*>(a.blocks),
                      a.rows * g.window() * of_pixel,
                      Divider(g.window() * of_pixel),
                      Divider(transposed ? a.window_width : a.window_width * of_pixel),
                      Divider(of_pixel)};
    const dim3 grid = eqc::grid_for(p.vectors, kTile);
    if (transposed) {
        const Side side(g.window(), a.channels);
        EQC_LAUNCH_CHECKED(status, (gather_transposed<T, kOwned>),
                           eqc::grid_for(a.rows * side.tiles(), 1), dim3(kTileThreads), 0, stream, p, side);
    } else if (vectors) {
        EQC_LAUNCH_CHECKED(status, (gather<T, typename eqc::Vector16<T>::type, kOwned>), grid, dim3(kTileThreads), 0,
                           stream, p);
    } else {
        EQC_LAUNCH_CHECKED(status, (gather<T, T, kOwned>), grid, dim3(kTileThreads), 0, stream, p);
    }
}

template <class T>
size_t block_gather_workspace(const eqc_blocks& a) {
    if (check(a) != EQC_OK || (a.flags & EQC_BS_OWNED) == 0) {
        return 0;
    }
    eqc::Space space(nullptr);
    Map(space, Geometry(a), false);
    return space.used();
}

template <class T>
int block_gather(const eqc_blocks& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK || a.rows == 0 || a.channels == 0) {
        return status;
    }
    const Geometry g(a);
    const bool owned = (a.flags & EQC_BS_OWNED) != 0;
    if (a.blocks == nullptr || (g.pixels() > 0 && a.x == nullptr) ||
        (workspace == nullptr && block_gather_workspace<T>(a) > 0)) {
        return EQC_BAD_ARGUMENT;
    }
    Map map;
    if (owned) {
        eqc::Space space(workspace);
        map = Map(space, g, false);
        clear_map(status, map, stream);
        make_map(status, g, map, stream);
    }
    if (owned) {
        launch_gather<T, true>(status, a, g, map, stream);
    } else {
        launch_gather<T, false>(status, a, g, map, stream);
    }
    return status;
}

template <class T>
size_t block_scatter_workspace(const eqc_blocks& a) {
    if (check(a) != EQC_OK) {
        return 0;
    }
    eqc::Space space(nullptr);
    Map(space, Geometry(a), (a.flags & EQC_BS_ADD) != 0);
    return space.used();
}

template <class T, bool kAdd>
void launch_scatter(int& status, const eqc_blocks& a, const Geometry& g, const Map& map, cudaStream_t stream) {
    const bool transposed = is_transposed(a);
    const bool vectors = !transposed && in_vectors<T>(a.channels, {a.blocks_in, a.base, a.y});
    const int64_t of_pixel = a.channels / (vectors ? eqc::Vector16<T>::width : 1);
    const Scatter<T> p{g,
                       map,
                       static_cast<const T*>(a.blocks_in),
                       static_cast<const T*>(a.base),
                       static_cast<T*>(a.y),
                       g.pixels() * of_pixel,
                       Divider(of_pixel),
                       Divider(a.height),
                       Divider(a.width)};
    const dim3 grid = eqc::grid_for(p.vectors, kTileThreads * kVectorsOf<kAdd>);
    if (transposed) {
        const Side side(g.pixels(), a.channels);
        EQC_LAUNCH_CHECKED(status, (scatter_transposed<T, kAdd>),
                           eqc::grid_for(side.tiles(), 1), dim3(kTileThreads), 0, stream, p, side);
    } else if (vectors) {
        EQC_LAUNCH_CHECKED(status, (scatter<T, typename eqc::Vector16<T>::type, kAdd>), grid, dim3(kTileThreads), 0,
                           stream, p);
    } else {
        EQC_LAUNCH_CHECKED(status, (scatter<T, T, kAdd>), grid, dim3(kTileThreads), 0, stream, p);
    }
}

template <class T>
int block_scatter(const eqc_blocks& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK || a.images == 0 || a.height == 0 || a.width == 0 || a.channels == 0) {
        return status;
    }
    if (a.y == nullptr || (workspace == nullptr && block_scatter_workspace<T>(a) > 0)) {
        return EQC_BAD_ARGUMENT;
    }
    const Geometry g(a);
    const bool add = (a.flags & EQC_BS_ADD) != 0;
    eqc::Space space(workspace);
    const Map map(space, g, add);
    clear_map(status, map, stream);
    make_map(status, g, map, stream);
    if (add) {
        launch_scatter<T, true>(status, a, g, map, stream);
    } else {
        launch_scatter<T, false>(status, a, g, map, stream);
    }
    return status;
}

/* What block_pixels keeps in its workspace. */
struct PixelSpace {
    Map map;
    eqc::TileSums sums;

    PixelSpace(eqc::Space& space, const Geometry& g)
        : map(space, g, false),
          sums(space, g.pixels() == 0 ? 1 : ceil_div(g.pixels(), kTile)) {}
};

template <class T>
size_t block_pixels_workspace(const eqc_blocks& a) {
    if (check(a) != EQC_OK) {
        return 0;
    }
    eqc::Space space(nullptr);
    PixelSpace(space, Geometry(a));
    return space.used();
}

template <class T>
int block_pixels(const eqc_blocks& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK) {
        return status;
    }
    const Geometry g(a);
    if (workspace == nullptr || a.pixel_count == nullptr || (g.pixels() > 0 && a.pixels == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    eqc::Space space(workspace);
    const PixelSpace parts(space, g);
    eqc::fill_bytes(status, workspace, 0xff, space.used(), stream);
    make_map(status, g, parts.map, stream);
    EQC_LAUNCH_CHECKED(status, covered_pixels, dim3(unsigned(parts.sums.tiles)), dim3(kTileThreads), 0, stream, g,
                       parts.map, Divider(a.height), Divider(a.width), g.pixels(), a.pixels, a.pixel_count, parts.sums);
    return status;
}

}  // namespace

EQC_DEFINE(block_gather, eqc_blocks, block_gather)
EQC_DEFINE(block_scatter, eqc_blocks, block_scatter)
EQC_DEFINE(block_pixels, eqc_blocks, block_pixels)
