/* A layer as the blocks of a grid see it: an out field and a tile of in fields, these put in order of the type of their
 * pair, so that pairs of one type are neighbours and share what they read of the table.
 */
#ifndef EQC_STEERABLE_LAYER_CUH
#define EQC_STEERABLE_LAYER_CUH

#include "../common/device.cuh"
#include "steerable.h"

namespace eqc::steerable {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kLargestTile = 32;  // in fields of a block: a lane each while they are sorted

template <class T>
using View = decltype(eqc_view(static_cast<T*>(nullptr), int64_t(0)));

/* The arguments, with sizes that fit 32 bits. */
template <class T>
struct Layer {
    const int32_t* pairs;
    const int32_t* out_starts;
    const int32_t* in_starts;
    const int32_t* table;
    const int32_t* permutation;
    const T* values;
    const T* harmonic;
    T* weights;
    T* filter;
    int in_fields;
    int in_channels;
    int pixels;
    int harmonics;
    int permutations;
    int tile;   // in fields of a block
    int tiles;  // blocks of an out field
    int64_t weights_size;
    int64_t filter_size;
    int64_t table_size;
    int64_t values_size;

    __device__ __forceinline__ View<const int32_t> table_view() const { return eqc_view(table, table_size); }
    __device__ __forceinline__ View<const T> values_view() const { return eqc_view(values, values_size); }
    __device__ __forceinline__ View<const T> weights_read() const {
        return eqc_view(static_cast<const T*>(weights), weights_size);
    }
    __device__ __forceinline__ View<T> weights_written() const { return eqc_view(weights, weights_size); }
    __device__ __forceinline__ View<const T> filter_read() const {
        return eqc_view(static_cast<const T*>(filter), filter_size);
    }
    __device__ __forceinline__ View<T> filter_written() const { return eqc_view(filter, filter_size); }
};

/* What the table says about a type; lists and images are positions in the table. */
struct Type {
    int out_size;
    int in_size;
    int elements;
    int rows;
    int harmonics;
    int used;         // three numbers for each harmonic
    int element;      // of each slot
    int first_image;  // of each row, and the number of images
    int images;       // four numbers each
    int values;

    __device__ __forceinline__ Type(View<const int32_t> table, int type) {
        const View<const int32_t> record = table + int64_t(type) * EQC_ST_RECORD;
        out_size = record[EQC_ST_OUT_SIZE];
        in_size = record[EQC_ST_IN_SIZE];
        elements = record[EQC_ST_ELEMENTS];
        rows = record[EQC_ST_ROWS];
        harmonics = record[EQC_ST_HARMONICS];
        used = record[EQC_ST_LISTS];
        element = used + 3 * harmonics;
        first_image = element + record[EQC_ST_SLOTS];
        images = first_image + rows + 1;
        values = record[EQC_ST_VALUES];
    }
};

/* The in fields of a block in order of type, and what a block or a warp has to do with them. */
struct Tile {
    eqc_shared_ptr<int32_t> type;
    eqc_shared_ptr<int32_t> weight;    // first of the pair
    eqc_shared_ptr<int32_t> channel;   // first of the field
    eqc_shared_ptr<int32_t> channels;  // of the field
    int fields;
    int out_channel;   // first of the out field
    int out_channels;  // of the out field
    unsigned heads;    // bit i: field i is the first of its type

    /* One past the last field of the type that begins at `first`. */
    __device__ __forceinline__ int end(int first) const {
        const unsigned later = heads & ~((2u << first) - 1u);
        return later == 0 ? fields : __ffs(int(later)) - 1;
    }
};

/* Sorts the tile of this block. Every thread has to pass a barrier, then to call find_types, before it reads. */
template <class T>
__device__ __forceinline__ Tile sort_tile(const Layer<T>& p) {
    EQC_SHARED_ARRAY(int32_t, types, kLargestTile);
    EQC_SHARED_ARRAY(int32_t, weights, kLargestTile);
    EQC_SHARED_ARRAY(int32_t, channels, kLargestTile);
    EQC_SHARED_ARRAY(int32_t, widths, kLargestTile);
    const int out_field = int(blockIdx.x) / p.tiles;
    const int first = (int(blockIdx.x) - out_field * p.tiles) * p.tile;
    const int fields = min(p.tile, p.in_fields - first);
    const int from = p.out_starts[out_field];
    const int lane = int(threadIdx.x);
    if (lane < 32) {
        const bool there = lane < fields;
        const int32_t* pair = p.pairs + 2 * (int64_t(out_field) * p.in_fields + first + (there ? lane : 0));
        const int type = pair[0];
        int at = 0;
        for (int other = 0; other < fields; ++other) {
            const int its = __shfl_sync(kAllLanes, type, other);
            at += its < type || (its == type && other < lane) ? 1 : 0;
        }
        if (there) {
            const int channel = p.in_starts[first + lane];
            types[at] = type;
            weights[at] = pair[1];
            channels[at] = channel;
            widths[at] = p.in_starts[first + lane + 1] - channel;
        }
    }
    return {types, weights, channels, widths, fields, from, p.out_starts[out_field + 1] - from, 0u};
}

__device__ __forceinline__ void find_types(Tile& tile) {
    const int lane = int(threadIdx.x) % 32;
    bool head = lane == 0;
    if (lane > 0 && lane < tile.fields) {
        head = int(tile.type[lane]) != int(tile.type[lane - 1]);
    }
    tile.heads = __ballot_sync(kAllLanes, head);
}

/* Deals units of work out to workers one by one, on through lists of units of any length. */
class Deal {
   public:
    __device__ __forceinline__ Deal(int worker, int workers) : worker_(worker), workers_(workers) {}
    /* The first of the next list's units that is this worker's; the others follow in steps of workers(). */
    __device__ __forceinline__ int first(int units) {
        const int own = worker_;
        worker_ = (worker_ - units % workers_ + workers_) % workers_;
        return own;
    }
    __device__ __forceinline__ int workers() const { return workers_; }

   private:
    int worker_;  // of the next unit, counted from the one that is its turn
    int workers_;
};

/* The block of a pair without a type; by a warp. */
template <class T>
__device__ __forceinline__ void write_zeros(const Layer<T>& p, const Tile& tile, int field) {
    const auto filter = p.filter_written();
    const int lane = int(threadIdx.x) % 32;
    const int length = int(tile.channels[field]) * p.pixels;
    for (int o = 0; o < tile.out_channels; ++o) {
        const int64_t row = int64_t(tile.out_channel + o) * p.in_channels + int(tile.channel[field]);
        for (int k = lane; k < length; k += 32) {
            filter[row * p.pixels + k] = T(0);
        }
    }
}

}  // namespace eqc::steerable

#endif
