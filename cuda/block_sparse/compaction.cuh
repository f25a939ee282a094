/* Lists in order, made by one launch: every thread brings a number of entries and learns where they go. Blocks take
 * tiles in the order in which they start and look back over the sums of the tiles before (Merrill and Garland,
 * Single-pass Parallel Prefix Scan with Decoupled Look-back, 2016), so no block waits for one that has not begun.
 */
#ifndef EQC_COMPACTION_CUH
#define EQC_COMPACTION_CUH

#include "../common/device.cuh"

namespace eqc {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;

/* The words of a compaction: one a tile, and the number of tiles taken. All bytes are 0xff before the launch. */
struct TileSums {
    unsigned long long* word = nullptr;
    int64_t tiles = 0;

    TileSums() = default;
    TileSums(Space& space, int64_t tiles_)
        : word(space.take<unsigned long long>(tiles_ + 1)), tiles(tiles_) {}
};

constexpr unsigned long long kTileAlone = 1ull << 32;   // the word has the tile's own sum
constexpr unsigned long long kTileUntil = 2ull << 32;   // the word has the sum of all tiles up to it
constexpr unsigned long long kTileMissing = ~0ull;

/* The tile of this block. By the whole block. */
__device__ __forceinline__ int64_t take_tile(const TileSums& sums) {
    EQC_SHARED_ARRAY(int64_t, taken, 1);
    if (threadIdx.x == 0) {
        taken[0] = int64_t(atomicAdd(eqc_view(sums.word, sums.tiles + 1) + sums.tiles, 1ull) + 1);
    }
    __syncthreads();
    return taken[0];
}

template <class T>
__device__ __forceinline__ T sum_until_lane(T value) {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const T other = __shfl_up_sync(kAllLanes, value, distance);
        value += lane >= distance ? other : T(0);
    }
    return value;
}

/* The sum over all tiles before; tells the others this tile's `own`. By one warp. */
__device__ __forceinline__ unsigned sum_before_tile(const TileSums& sums, int64_t tile, unsigned own) {
    const int lane = int(threadIdx.x) % 32;
    const auto word = eqc_view(sums.word, sums.tiles + 1);
    if (lane == 0 && tile > 0) {
        store_relaxed(word + tile, kTileAlone | own);
    }
    unsigned before = 0;
    for (int64_t last = tile - 1; last >= 0; last -= 32) {
        unsigned long long found = kTileUntil;
        do {
            if (last - lane >= 0) {
                found = load_relaxed(word + (last - lane));
            }
        } while (__any_sync(kAllLanes, found == kTileMissing));
        const unsigned complete = __ballot_sync(kAllLanes, (found & kTileUntil) != 0);
        const bool wanted = complete == 0 || lane < __ffs(int(complete));
        before += group_sum<32>(wanted ? unsigned(found) : 0u);
        if (complete != 0) {
            break;
        }
    }
    if (lane == 0) {
        store_relaxed(word + tile, kTileUntil | (before + own));
    }
    return before;
}

struct Placed {
    unsigned at;     // entries of all threads and tiles before this thread
    unsigned until;  // entries of all tiles up to this one
};

/* Where `count` entries of this thread go: tiles in order, threads in order within. By the whole block, once. */
__device__ __forceinline__ Placed place_in_order(const TileSums& sums, int64_t tile, unsigned count) {
    EQC_SHARED_ARRAY(unsigned, warp_start, kTileWarps);
    EQC_SHARED_ARRAY(unsigned, end, 1);
    const int lane = int(threadIdx.x) % 32;
    const int warp = int(threadIdx.x) / 32;
    const unsigned until = sum_until_lane(count);
    if (lane == 31) {
        warp_start[warp] = until;
    }
    __syncthreads();
    if (warp == 0) {
        const unsigned own = lane < kTileWarps ? unsigned(warp_start[lane]) : 0u;
        const unsigned through = sum_until_lane(own);
        const unsigned all = __shfl_sync(kAllLanes, through, 31);
        const unsigned before = sum_before_tile(sums, tile, all);
        if (lane < kTileWarps) {
            warp_start[lane] = before + through - own;
        }
        if (lane == 0) {
            end[0] = before + all;
        }
    }
    __syncthreads();
    return {warp_start[warp] + until - count, end[0]};
}

}  // namespace eqc

#endif
