/* Which windows of a mask are active, as a list in raster order.
 *
 * The floor is one read of the mask and one write of the list. One launch does both: groups of lanes reduce a window
 * each (one lane for the few values of a convolution's footprint, a warp for a block's, the whole block for a window of
 * thousands), and the tiles' counts meet by looking back. Overlapping windows read the mask again from the caches.
 */
#include "compaction.cuh"
#include "launch.cuh"

namespace {

using eqc::Divider;
using eqc::kAllLanes;
using eqc::kTileThreads;

template <class M>
struct Masked {
    const M* mask;
    int64_t windows;
    int64_t height;
    int64_t width;
    int64_t window_height;
    int64_t window_width;
    int64_t stride_height;
    int64_t stride_width;
    int64_t offset_height;
    int64_t offset_width;
    Divider grid_height;
    Divider grid_width;
    float tolerance;
    bool average;
    bool triples;  // (image, i, j), not flat positions
    bool first;    // an empty list becomes (0, 0, 0)
    int lanes;     // that share a window: a power of two up to 32, or all of the block
    int32_t* index;
    int32_t* count;
    eqc::TileSums sums;
};

struct Place {
    int image, i, j;
};

template <class M>
__device__ __forceinline__ Place place_of(const Masked<M>& p, int64_t window) {
    const unsigned row = p.grid_width.quotient(unsigned(window));
    const unsigned image = p.grid_height.quotient(row);
    return {int(image), int(row - image * p.grid_height.divisor()),
            int(unsigned(window) - row * p.grid_width.divisor())};
}

/* This lane's share of a window: the sum of its values, or how many of them are above the tolerance. */
template <class M>
__device__ __forceinline__ double share(const Masked<M>& p, int64_t window, int lane) {
    const Place at = place_of(p, window);
    const int64_t top = p.offset_height + p.stride_height * at.i;
    const int64_t left = p.offset_width + p.stride_width * at.j;
    const int64_t top_inside = top < 0 ? 0 : top;
    const int64_t left_inside = left < 0 ? 0 : left;
    const int64_t bottom = top + p.window_height < p.height ? top + p.window_height : p.height;
    const int64_t right = left + p.window_width < p.width ? left + p.window_width : p.width;
    if (bottom <= top_inside || right <= left_inside) {
        return 0;
    }
    const int rows = int(bottom - top_inside);
    const int columns = int(right - left_inside);
    const M* corner = p.mask + (int64_t(at.image) * p.height + top_inside) * p.width + left_inside;
    const int down = p.lanes / columns;
    const int across = p.lanes % columns;
    int row = lane / columns;
    int column = lane % columns;
    double found = 0;
#pragma unroll 4
    while (row < rows) {
        const float value = float(corner[row * p.width + column]);
        found += p.average ? double(value) : value > p.tolerance ? 1.0 : 0.0;
        row += down;
        column += across;
        if (column >= columns) {
            column -= columns;
            ++row;
        }
    }
    return found;
}

/* The shares of a window together, in every lane that has one. By the whole block. */
__device__ __forceinline__ double together(double found, int lanes) {
    for (int distance = (lanes < 32 ? lanes : 32) / 2; distance > 0; distance /= 2) {
        found += __shfl_xor_sync(kAllLanes, found, distance);
    }
    if (lanes > 32) {
        EQC_SHARED_ARRAY(double, of_warp, eqc::kTileWarps);
        if (threadIdx.x % 32 == 0) {
            of_warp[threadIdx.x / 32] = found;
        }
        __syncthreads();
        found = 0;
        for (int warp = 0; warp < eqc::kTileWarps; ++warp) {
            found += of_warp[warp];
        }
    }
    return found;
}

/* A group of lanes has kEach windows one after the other. */
template <class M, int kEach>
__global__ void __launch_bounds__(kTileThreads) active_windows(Masked<M> p) {
    const int64_t tile = eqc::take_tile(p.sums);
    const int group = int(threadIdx.x) / p.lanes;
    const int lane = int(threadIdx.x) % p.lanes;
    const int64_t begin = (tile * (kTileThreads / p.lanes) + group) * kEach;
    unsigned active = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const bool there = begin + k < p.windows;
        double found = together(there ? share(p, begin + k, lane) : 0, p.lanes);
        if (p.average) {
            const float mean = float(found / (double(p.window_height) * double(p.window_width)));
            found = there && mean > p.tolerance ? 1 : 0;
        }
        active |= lane == 0 && found > 0 ? 1u << k : 0u;
    }
    const eqc::Placed placed = eqc::place_in_order(p.sums, tile, unsigned(__popc(active)));
    const auto index = eqc_view(p.index, p.windows * (p.triples ? 3 : 1));
    int64_t to = placed.at;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        if ((active >> k & 1u) == 0) {
            continue;
        }
        if (p.triples) {
            const Place at = place_of(p, begin + k);
            index[3 * to] = at.image;
            index[3 * to + 1] = at.i;
            index[3 * to + 2] = at.j;
        } else {
            index[to] = int32_t(begin + k);
        }
        ++to;
    }
    if (tile == p.sums.tiles - 1 && threadIdx.x == 0) {
        const bool forced = p.first && placed.until == 0 && p.windows > 0;
        for (int k = 0; k < 3 && forced; ++k) {
            index[k] = 0;
        }
        *p.count = forced ? 1 : int32_t(placed.until);
    }
}

/* ---- The calls -------------------------------------------------------------------------------------------------- */

constexpr int64_t kBusyThreads = 264 * 1024;  // that fill the device: 2048 on each of 132 multiprocessors
constexpr int kEachOfMany = 4;

int check(const eqc_mask& a) {
    if (eqc::any_below(0, {a.images, a.height, a.width, a.grid_height, a.grid_width}) ||
        eqc::any_below(1, {a.window_height, a.window_width, a.stride_height, a.stride_width})) {
        return EQC_BAD_ARGUMENT;
    }
    if (eqc::any_above(eqc::kLargestSize,
                       {a.height, a.width, a.grid_height, a.grid_width, a.window_height, a.window_width,
                        a.stride_height, a.stride_width, a.offset_height, a.offset_width}) ||
        eqc::any_below(-eqc::kLargestSize, {a.offset_height, a.offset_width}) ||
        eqc::product({a.images, a.height, a.width}, INT32_MAX) < 0 ||
        eqc::product({a.images, a.grid_height, a.grid_width}, INT32_MAX) < 0) {
        return EQC_UNSUPPORTED;
    }
    return EQC_OK;
}

/* How the windows of a call are shared out. */
struct Shares {
    int64_t windows;
    int lanes = 1;
    int each = 1;
    int64_t tiles;

    explicit Shares(const eqc_mask& a) : windows(a.images * a.grid_height * a.grid_width) {
        const int64_t area = eqc::product({a.window_height, a.window_width}, INT32_MAX);
        const bool huge = area < 0 || area >= 4096;
        while (lanes < 32 && (huge || (windows * lanes < kBusyThreads && lanes * 4 <= area))) {
            lanes *= 2;
        }
        if (huge && windows * lanes < kBusyThreads) {
            lanes = kTileThreads;
        }
        if (lanes == 1 && windows >= kEachOfMany * kBusyThreads) {
            each = kEachOfMany;
        }
        const int64_t of_tile = int64_t(kTileThreads / lanes) * each;
        tiles = windows == 0 ? 1 : eqc::ceil_div(windows, of_tile);
    }
};

template <class T>
size_t mask_workspace(const eqc_mask& a) {
    if (check(a) != EQC_OK) {
        return 0;
    }
    eqc::Space space(nullptr);
    eqc::TileSums(space, Shares(a).tiles);
    return space.used();
}

template <class M>
int find_windows(const eqc_mask& a, const M* mask, bool triples, void* workspace, cudaStream_t stream) {
    const Shares shares(a);
    eqc::Space space(workspace);
    const eqc::TileSums sums(space, shares.tiles);
    int status = EQC_OK;
    eqc::fill_bytes(status, workspace, 0xff, space.used(), stream);
    const Masked<M> p{mask,
                      shares.windows,
                      a.height,
                      a.width,
                      a.window_height,
                      a.window_width,
                      a.stride_height,
                      a.stride_width,
                      a.offset_height,
                      a.offset_width,
                      Divider(a.grid_height),
                      Divider(a.grid_width),
                      float(a.tolerance),
                      (a.flags & EQC_BS_AVERAGE) != 0,
                      triples,
                      triples && (a.flags & EQC_BS_FIRST) != 0,
                      shares.lanes,
                      a.index,
                      a.count,
                      sums};
    const dim3 grid{unsigned(shares.tiles)};
    if (shares.each == 1) {
        EQC_LAUNCH_CHECKED(status, (active_windows<M, 1>), grid, dim3(kTileThreads), 0, stream, p);
    } else {
        EQC_LAUNCH_CHECKED(status, (active_windows<M, kEachOfMany>), grid, dim3(kTileThreads), 0, stream, p);
    }
    return status;
}

template <class T>
int mask_call(const eqc_mask& a, bool triples, void* workspace, cudaStream_t stream) {
    const int status = check(a);
    if (status != EQC_OK) {
        return status;
    }
    const bool windows = a.images > 0 && a.grid_height > 0 && a.grid_width > 0;
    const bool values = a.images > 0 && a.height > 0 && a.width > 0;
    if (workspace == nullptr || a.count == nullptr || (windows && a.index == nullptr) ||
        (values && a.mask == nullptr && a.bytes == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    return a.mask != nullptr ? find_windows(a, static_cast<const T*>(a.mask), triples, workspace, stream)
                             : find_windows(a, a.bytes, triples, workspace, stream);
}

template <class T>
size_t mask_blocks_workspace(const eqc_mask& a) {
    return mask_workspace<T>(a);
}
template <class T>
int mask_blocks(const eqc_mask& a, void* workspace, cudaStream_t stream) {
    return mask_call<T>(a, true, workspace, stream);
}
template <class T>
size_t mask_pixels_workspace(const eqc_mask& a) {
    return mask_workspace<T>(a);
}
template <class T>
int mask_pixels(const eqc_mask& a, void* workspace, cudaStream_t stream) {
    return mask_call<T>(a, false, workspace, stream);
}

}  // namespace

EQC_DEFINE(mask_blocks, eqc_mask, mask_blocks)
EQC_DEFINE(mask_pixels, eqc_mask, mask_pixels)
