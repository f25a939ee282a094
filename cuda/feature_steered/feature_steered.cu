/* Feature-steered graph convolution, fused, for CUDA: forward and backward.
 *
 * The floor of a call is the larger of
 *     t_flop = (2 V M C D + 2 E M C + 4 V C M) / peak   and   t_byte = 4 (V C + V D + 2 V M + 2 E) / bandwidth,
 * and on a mesh (E = 7 V) from C = D = 32, M = 8 on it is t_flop, nearly all of it the product z W. So:
 *   - z [V, M C] never exists. A block owns 64 centres; it gathers one chunk of z (8 matrices x 32 channels; 4 x 32 in
 *     double) into shared memory, multiplies it by the chunk's rows of W into registers, and goes on to the next chunk.
 *     Two blocks share a multiprocessor (128 registers a thread, 89 KiB), so that one gathers while the other
 *     multiplies.
 *   - the product: 8 x 4 accumulators a thread, so that they and what the gather needs fit into registers (8 x 8 where
 *     the sums end before a gather begins); 16-byte reads of both operands without bank conflicts, W in two slabs that
 *     asynchronous copies fill, one barrier a slab. Narrow outputs split k over groups of warps.
 *   - the gather: a warp a centre, a lane a channel, so a neighbour's row is one transaction; the softmax of 4 edges x
 *     8 matrices at a time by three shuffles; the tile's columns and weights are staged first and the neighbours' rows
 *     asked for before the softmax, so that a centre waits for memory about once; probabilities pass through shared
 *     memory as 16-byte broadcasts, since a shuffle costs four multiply-adds.
 *   - exponentials are made at the vertices, 2 V M of them instead of E M: q = ea es / sum(ea es). Features are centred
 *     first, so that an offset common to all of them neither costs digits nor makes factors underflow, and an edge
 *     whose factors underflow nevertheless is redone from its logits. Logits and factors together take 4 V M of
 *     workspace.
 *   - a row with more than 256 edges is shared by the eight warps of its block.
 * Backward, again without z or dz in global memory: a row pass makes dz = G W^T in shared memory and from it the
 * gradients of the edges and of the sources; a second pass regathers z for dW, each block keeping its part of dW in
 * registers over many tiles. Sums over vertices have two stages in a fixed order. Only dx and ds are added atomically,
 * and with EQC_FS_DETERMINISTIC they come from a pass over the columns, which is the forward kernel on the transposed
 * pattern: r_jm = sum_i p_ijm G_i, dx_j = sum_m W_m r_jm.
 */
#include "feature_steered.h"

#include "../common/device.cuh"
#include "../common/sums.cuh"
#include "../common/transpose.cuh"

namespace {

using eqc::kAllLanes;

constexpr int kRows = 64;          // centres of a block
constexpr int kWarps = 8;          // warps of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kLane = 32;          // channels of a chunk: one a lane
constexpr int kBatch = 16;         // edges whose probabilities a warp holds at a time
constexpr int kLongRow = 256;      // more edges than this: the whole block takes the row
constexpr int kSlab = 1024;        // elements of W in flight: kSlab / columns of them at a time
constexpr int kBusy = 264;         // blocks that fill the device: two on each of 132 multiprocessors
constexpr int kSamples = 1024;     // rows that the centring constant is the mean of

template <class T>
struct Shape {
    static constexpr int kWidth = eqc::Vector16<T>::width;
    static constexpr int kMatrices = 32 / int(sizeof(T));      // of a chunk, and lanes that share an edge
    static constexpr int kEdges = 32 / kMatrices;              // edges that a warp's lanes hold at a time
    static constexpr int kChunk = kMatrices * kLane;           // columns of a tile of z
    static constexpr int kPitch = kChunk + kWidth;             // a 16-byte step of bank from row to row
    static constexpr T kLowest = -std::numeric_limits<T>::infinity();
    static constexpr size_t kTileBytes = sizeof(T) * kRows * kPitch;
    static constexpr size_t kSlabBytes = sizeof(T) * 2 * kSlab;
    static constexpr size_t kBatchBytes = sizeof(T) * kWarps * kBatch * kMatrices;
    static constexpr int kStaged = 4096 / int(sizeof(T));      // edges of a tile that shared memory has room for
    static constexpr size_t kStagedBytes = (2 * sizeof(T) + sizeof(int32_t)) * kStaged;
    static constexpr size_t kSlabAt = kTileBytes;
    static constexpr size_t kBatchAt = kSlabAt + kSlabBytes;
    static constexpr size_t kStagedAt = kBatchAt + kBatchBytes;
    static constexpr size_t kSharedBytes = kStagedAt + kStagedBytes;
};

/* Below this the sum of the products of the two factors may have lost digits to underflow. */
template <class T>
__device__ __forceinline__ T least_total();
template <>
__device__ __forceinline__ float least_total<float>() {
    return 0x1p-40f;
}
template <>
__device__ __forceinline__ double least_total<double>() {
    return 0x1p-330;
}

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_index() { return int(threadIdx.x) / 32; }

/* Which vertices meet, and what their softmax is made of. The rows of the pattern for most passes; its columns for the
 * deterministic gradient of the features, where `own` and `other` change places. */
template <class T>
struct Steering {
    const T* own;        // [rows, M] logits
    const T* own_exp;    // [rows, M] exp(logit - largest of the row); NULL: every edge from its own logits
    const T* other;      // [others, M]
    const T* other_exp;  // [others, M]
    const int64_t* start;      // [rows + 1]
    const int32_t* neighbour;  // by position
    const int64_t* slot;       // position -> slot in row order; NULL: the same
    const int64_t* edge;       // slot -> entry of values; NULL: the same
    const T* values;
    int64_t rows;
    int64_t others;
    int matrices;

    __device__ __forceinline__ auto own_factors() const {
        return eqc_view(own_exp, own_exp == nullptr ? 0 : rows * matrices);
    }
    __device__ __forceinline__ auto other_factors() const {
        return eqc_view(other_exp, other_exp == nullptr ? 0 : others * matrices);
    }
};

template <class T>
__device__ __forceinline__ int64_t edge_at(const Steering<T>& s, int64_t position) {
    const int64_t slot = s.slot == nullptr ? position : s.slot[position];
    return s.edge == nullptr ? slot : s.edge[slot];
}

/* This lane's factor of a centre, for matrix m0 + lane % kMatrices. */
template <class T>
__device__ __forceinline__ T own_factor(const Steering<T>& s, int64_t row, int m0) {
    const int m = m0 + lane_index() % Shape<T>::kMatrices;
    return s.own_exp != nullptr && m < s.matrices && row < s.rows ? T(s.own_factors()[row * s.matrices + m]) : T(0);
}

/* q for matrix m of one edge from the logits of its ends, with its own maximum; kMatrices lanes share the edge and each
 * has its own m. Seldom needed, so its loops stay small: unrolled they would take registers from the common case. */
template <class T, class Pointer>
__device__ __forceinline__ T exact_assignment(Pointer own, Pointer other, int matrices, int m) {
    constexpr int kLanes = Shape<T>::kMatrices;
    T largest = Shape<T>::kLowest;
#pragma unroll 1
    for (int k = m % kLanes; k < matrices; k += kLanes) {
        const T logit = own[k] + other[k];
        largest = logit > largest ? logit : largest;
    }
    largest = eqc::group_max<kLanes>(largest);
    T total = 0;
#pragma unroll 1
    for (int k = m % kLanes; k < matrices; k += kLanes) {
        total += eqc::exponential(own[k] + other[k] - largest);
    }
    total = eqc::group_sum<kLanes>(total);
    return m < matrices ? eqc::exponential(own[m] + other[m] - largest) / total : T(0);
}

/* The first edges of a tile in shared memory, so that a row does not begin with a chain of loads, and their softmax
 * denominators between one chunk and the next, 0 for an edge whose factors do not do. */
template <class T>
struct Staged {
    eqc_shared_ptr<T> weight;
    eqc_shared_ptr<T> total;
    eqc_shared_ptr<int32_t> column;
    int64_t begin;  // position of the first

    __device__ Staged(size_t at, int64_t begin_)
        : weight(eqc_dynamic_shared<T>(at)),
          total(eqc_dynamic_shared<T>(at + sizeof(T) * Shape<T>::kStaged)),
          column(eqc_dynamic_shared<int32_t>(at + 2 * sizeof(T) * Shape<T>::kStaged)),
          begin(begin_) {}

    /* Place of a lane's edge, `mine` from `position` on, when room is for `count` from there; else -1. The same sign in
     * all lanes. */
    __device__ __forceinline__ int place(int64_t position, int count, int mine) const {
        const int64_t at = position - begin;
        return at + count <= Shape<T>::kStaged ? int(at) + mine : -1;
    }
};

/* By the whole block, between barriers. */
template <class T>
__device__ __forceinline__ void stage_edges(const Steering<T>& s, int64_t end, const Staged<T>& staged) {
    for (int k = int(threadIdx.x); k < Shape<T>::kStaged && staged.begin + k < end; k += kThreads) {
        staged.column[k] = s.neighbour[staged.begin + k];
        staged.weight[k] = s.values[edge_at(s, staged.begin + k)];
    }
}

/* q of this lane's edge and matrix (m0 + lane % kMatrices), 0 where there is none. The whole warp calls it. With more
 * matrices than lanes the edge's denominator is at totals[place], or goes there when not yet `filled`; place -1: none.
 * */
template <class T>
__device__ __forceinline__ T assignment(const Steering<T>& s, int64_t row, int m0, T factor, bool valid,
                                        int32_t neighbour, eqc_shared_ptr<T> totals, int place, bool filled) {
    constexpr int kLanes = Shape<T>::kMatrices;
    const int m = m0 + lane_index() % kLanes;
    const int64_t other = int64_t(neighbour) * s.matrices;
    T q = 0;
    bool good = !valid;
    if (s.own_exp != nullptr) {
        const auto own_factors = s.own_factors();
        const auto other_factors = s.other_factors();
        const T product = valid && m < s.matrices ? factor * other_factors[other + m] : T(0);
        T total = product;
        if (s.matrices > kLanes && place >= 0 && filled) {
            total = valid ? T(totals[place]) : T(0);
        } else {
            if (s.matrices > kLanes) {
                total = 0;
#pragma unroll 1
                for (int k = m % kLanes; k < s.matrices && valid; k += kLanes) {
                    total += own_factors[row * s.matrices + k] * other_factors[other + k];
                }
            }
            total = eqc::group_sum<kLanes>(total);
            total = total >= least_total<T>() ? total : T(0);
            if (s.matrices > kLanes && place >= 0 && valid && m % kLanes == 0) {
                totals[place] = total;
            }
        }
        if (total > 0) {
            q = product / total;  // no reciprocal: a q of 1 has to be 1, or its gradient is noise
            good = true;
        }
        if (__all_sync(kAllLanes, good)) {
            return q;
        }
    }
    const T exact =
        exact_assignment<T>(eqc_view(s.own, s.rows * s.matrices) + row * s.matrices,
                            eqc_view(s.other, s.others * s.matrices) + other, valid ? s.matrices : 0, m);
    return good ? q : exact;
}

/* Sums p_ijm x_j over every `stride`-th batch of a row's edges, from batch `phase`: lane c has channel c0 + c, z[k]
 * matrix m0 + k. */
template <class T>
__device__ __forceinline__ void gather(const Steering<T>& s, const T* x, int channels, int c0, int m0, int64_t row,
                                       int64_t begin, int64_t end, int phase, int stride, const Staged<T>& staged,
                                       eqc_shared_ptr<T> batch, bool filled, T (&z)[Shape<T>::kMatrices]) {
    constexpr int kMatrices = Shape<T>::kMatrices;
    constexpr int kEdges = Shape<T>::kEdges;
    constexpr int kAhead = 8;  // features in flight
    const int lane = lane_index();
    const bool has_channel = c0 + lane < channels;
    const T* features = x + c0 + lane;
#pragma unroll
    for (int k = 0; k < kMatrices; ++k) {
        z[k] = 0;
    }
    const T factor = own_factor(s, row, m0);
#pragma unroll 1
    for (int64_t base = begin + int64_t(phase) * kBatch; base < end; base += int64_t(stride) * kBatch) {
        const int count = end - base < kBatch ? int(end - base) : kBatch;
        const int place = staged.place(base, count, lane);
        int32_t column = 0;
        T weight = 0;
        if (lane < count) {
            column = place >= 0 ? int32_t(staged.column[place]) : s.neighbour[base + lane];
            weight = place >= 0 ? T(staged.weight[place]) : s.values[edge_at(s, base + lane)];
        }
        T value[kAhead];  // asked for before the softmax, which then hides the way to memory
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            const int32_t j = __shfl_sync(kAllLanes, column, k);
            value[k] = has_channel && k < count ? features[int64_t(j) * channels] : T(0);
        }
#pragma unroll 1
        for (int step = 0; step < count; step += kEdges) {
            const int e = step + lane / kMatrices;
            const int32_t j = __shfl_sync(kAllLanes, column, e);
            const T w = __shfl_sync(kAllLanes, weight, e);
            batch[step * kMatrices + lane] =
                w * assignment(s, row, m0, factor, e < count, j, staged.total,
                               staged.place(base + step, kEdges, lane / kMatrices), filled);
        }
        __syncwarp();
#pragma unroll 1
        for (int e = 0; e < count; e += kAhead) {
            if (e > 0) {
#pragma unroll
                for (int k = 0; k < kAhead; ++k) {
                    const int32_t j = __shfl_sync(kAllLanes, column, e + k);
                    value[k] = has_channel && e + k < count ? features[int64_t(j) * channels] : T(0);
                }
            }
#pragma unroll
            for (int k = 0; k < kAhead; ++k) {
                if (e + k < count) {
                    T p[kMatrices];
                    eqc::load<T, kMatrices>(batch + (e + k) * kMatrices, true, kMatrices, p);
#pragma unroll
                    for (int m = 0; m < kMatrices; ++m) {
                        z[m] += p[m] * value[k];
                    }
                }
            }
        }
        __syncwarp();
    }
}

/* Row starts of the tile from row0 on; rows beyond the last are empty. */
__device__ __forceinline__ void load_starts(const int64_t* start, int64_t rows, int64_t row0,
                                            eqc_shared_ptr<int64_t> first) {
    for (int t = int(threadIdx.x); t <= kRows; t += kThreads) {
        first[t] = start[row0 + t < rows ? row0 + t : rows];
    }
}

/* Whether a row of the tile is for the whole block; the same answer in every lane. */
__device__ __forceinline__ bool has_long_row(eqc_shared_ptr<int64_t> first) {
    static_assert(kRows == 64, "two rows a lane");
    const int lane = lane_index();
    const bool either = first[lane + 1] - first[lane] > kLongRow || first[lane + 33] - first[lane + 32] > kLongRow;
    return __any_sync(kAllLanes, either);
}

/* The columns of a chunk of z: matrix k, channel c at k * stride + c. Up to 32 channels are dense, so that the rows of
 * W are consecutive; beyond, a matrix takes 32 columns, the last ones zero. */
__host__ __device__ inline int chunk_stride(int channels) { return channels < kLane ? channels : kLane; }

/* Fills a tile of z [64 rows][chunk]; columns from the chunk's width up to `padded` become 0. The caller has a barrier
 * on either side. */
template <class T>
__device__ __forceinline__ void gather_tile(const Steering<T>& s, const T* x, int channels, int c0, int m0,
                                            int64_t row0, eqc_shared_ptr<int64_t> first, int padded, bool filled,
                                            eqc_shared_ptr<T> tile, eqc_shared_ptr<T> batches,
                                            const Staged<T>& staged) {
    constexpr int kMatrices = Shape<T>::kMatrices;
    constexpr int kPitch = Shape<T>::kPitch;
    const int lane = lane_index();
    const int warp = warp_index();
    const int stride = chunk_stride(channels);
    const int matrices = s.matrices - m0 < kMatrices ? s.matrices - m0 : kMatrices;
    const eqc_shared_ptr<T> batch = batches + warp * kBatch * kMatrices;
    T z[kMatrices];
    const bool any_long = has_long_row(first);
    /* Each warp its own rows, then all warps together the long ones: turns 0 to 7, then 8 to 71. */
    for (int turn = 0; turn < kRows / kWarps + (any_long ? kRows : 0); ++turn) {
        const bool together = turn >= kRows / kWarps;
        const int t = together ? turn - kRows / kWarps : turn * kWarps + warp;
        const int64_t begin = first[t];
        const int64_t end = first[t + 1];
        const eqc_shared_ptr<T> out = tile + t * kPitch;
        if (!together) {
            for (int k = matrices * stride + lane; k < padded; k += 32) {
                out[k] = T(0);
            }
        }
        if ((end - begin > kLongRow) != together) {
            continue;
        }
        gather(s, x, channels, c0, m0, row0 + t, begin, end, together ? warp : 0, together ? kWarps : 1, staged,
               batch, filled, z);
        for (int next = together ? 0 : warp; next < kWarps; next = together ? next + 1 : kWarps) {
            if (next == warp && lane < stride) {  // in the order of the warps, so that the sum is always the same
#pragma unroll
                for (int k = 0; k < kMatrices; ++k) {
                    if (k < matrices) {
                        out[k * stride + lane] = together && next > 0 ? z[k] + out[k * stride + lane] : z[k];
                    }
                }
            }
            if (together) {
                __syncthreads();
            }
        }
    }
}

/* How a block's threads share a product of 64 rows x kColumns: kGroups groups take different k, and within a group a
 * thread has 8 rows x kPerThread columns. */
template <class T, int kColumns>
struct Product {
    static constexpr int kWidth = Shape<T>::kWidth;
    static constexpr int kPerThread = kColumns > 128 ? 8 : 4;
    static constexpr int kPass = 4;  // of these, at a time: what they multiply has to fit into registers, too
    static constexpr int kAcross = kColumns / kPerThread;
    static constexpr int kGroups = kThreads / (8 * kAcross);
    static constexpr int kDepth = kSlab / kColumns;       // rows of a slab
    static constexpr int kShare = kDepth / kGroups;       // of these, a group's
    static_assert(kGroups >= 1 && kShare % kWidth == 0 && kAcross % 8 == 0, "a split that fills the block");
    static_assert(kGroups * kRows * kColumns <= kRows * Shape<T>::kPitch, "the groups' results fit the tile");

    int group;
    int row;     // rows row, row + 8, ..., row + 56
    int across;  // columns across * kWidth + i, and again every kColumns * kWidth / kPerThread

    __device__ Product() {
        constexpr int kWarpsOfGroup = kWarps / kGroups;
        constexpr int kWarpsAcross = kAcross / 8;
        const int lane = lane_index();
        const int warp = warp_index() % kWarpsOfGroup;
        group = warp_index() / kWarpsOfGroup;
        across = lane % 8 + 8 * (warp % kWarpsAcross);
        row = lane / 8 + 4 * (warp / kWarpsAcross);
    }
    __device__ int column(int vector) const { return vector * (kColumns * kWidth / kPerThread) + across * kWidth; }
};

/* Rows of W for a chunk (m0, c0) of z, columns from n0 on. */
template <class T>
struct WeightRows {
    const T* w;
    int64_t first;  // row of k = 0
    int channels;
    int c0;
    int depth;
    int n0;
    int outputs;
    bool vectors;

    __device__ __forceinline__ const T* at(int k, int column, int i) const {
        const int n = column + i;
        if (k >= depth || n0 + n >= outputs) {
            return nullptr;
        }
        int64_t row = first + k;
        if (channels > kLane) {
            if (c0 + k % kLane >= channels) {
                return nullptr;
            }
            row = first + int64_t(k / kLane) * channels + k % kLane;
        }
        return w + row * outputs + n0 + n;
    }
};

/* A matrix whose columns are segments of `width` columns (`used` of them real), each segment from a matrix of its own.
 * */
template <class T>
struct Segments {
    const T* w;
    int64_t segment_step;
    int row_step;
    int count;
    int width;
    int used;
    int depth;
    bool vectors;
    int segment = 0;  // of the first column that this thread copies
    int column = 0;   // within it

    /* To copy columns from n on. */
    __device__ __forceinline__ void seek(int n) {
        segment = n / width;
        column = n % width;
    }
    __device__ __forceinline__ const T* at(int k, int, int i) const {
        int its_segment = segment;
        int its_column = column + i;
        while (its_column >= width) {
            its_column -= width;
            ++its_segment;
        }
        if (k >= depth || its_segment >= count || its_column >= used) {
            return nullptr;
        }
        return w + its_segment * segment_step + int64_t(k) * row_step + its_column;
    }
};

/* The first of the four columns of a slab that this thread copies. */
template <int kColumns>
__device__ __forceinline__ int first_copied() {
    static_assert(kSlab == 4 * kThreads, "four elements a thread");
    return 4 * int(threadIdx.x) % kColumns;
}

template <class T, int kColumns, class Source>
__device__ __forceinline__ void start_slab(eqc_shared_ptr<T> slab, const Source& source, int k0) {
    constexpr int kWidth = Shape<T>::kWidth;
    const int at = 4 * int(threadIdx.x);
    const int k = k0 + at / kColumns;
    const int n = first_copied<kColumns>();
    if (source.vectors) {
#pragma unroll
        for (int i = 0; i < 4; i += kWidth) {
            const T* from = source.at(k, n, i);
            eqc::copy_ahead<kWidth, T>(slab + at + i, from == nullptr ? source.w : from, from != nullptr);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
            const T* from = source.at(k, n, i);
            eqc::copy_ahead<1, T>(slab + at + i, from == nullptr ? source.w : from, from != nullptr);
        }
    }
}

/* Starts copying 64 rows of a matrix into shared memory, columns [0, width) of which the first `used` exist; the rest,
 * and rows beyond `rows`, become 0. Arrives like a slab. */
template <class T>
__device__ __forceinline__ void start_rows(eqc_shared_ptr<T> to, int pitch, const T* from, int64_t step, int rows,
                                           int used, int width, bool vectors) {
    constexpr int kWidth = Shape<T>::kWidth;
    const int quads = (width + 3) / 4;
#pragma unroll 1
    for (int k = int(threadIdx.x); k < kRows * quads; k += kThreads) {
        const int t = k / quads;
        const int c = 4 * (k % quads);
        const T* row = from + (t < rows ? t : 0) * step;
        if (vectors) {
#pragma unroll
            for (int i = 0; i < 4; i += kWidth) {
                const bool real = t < rows && c + i < used;
                eqc::copy_ahead<kWidth, T>(to + t * pitch + c + i, real ? row + c + i : from, real);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < 4; ++i) {
                const bool real = t < rows && c + i < used;
                eqc::copy_ahead<1, T>(to + t * pitch + c + i, real ? row + c + i : from, real);
            }
        }
    }
}

/* sums += tile [64, depth] x source [depth, kColumns]. The first slab was started by the caller; the tile is 0 from
 * depth up to the next multiple of Product::kDepth. Has a barrier before its first read of the tile. */
template <class T, int kColumns, class Source>
__device__ __forceinline__ void multiply(T (&sums)[8][Product<T, kColumns>::kPerThread], eqc_shared_ptr<T> tile,
                                         eqc_shared_ptr<T> slabs, const Source& source, int depth) {
    using P = Product<T, kColumns>;
    constexpr int kWidth = P::kWidth;
    constexpr int kVectors = P::kPass / kWidth;
    const P place;
    const eqc_shared_ptr<T> a = tile + place.row * Shape<T>::kPitch + place.group * P::kShare;
    const int steps = (depth + P::kDepth - 1) / P::kDepth;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        eqc::copies_arrive();
        __syncthreads();
        if (step + 1 < steps) {
            start_slab<T, kColumns>(slabs + (step + 1) % 2 * kSlab, source, (step + 1) * P::kDepth);
        }
        const eqc_shared_ptr<T> b = slabs + step % 2 * kSlab + place.group * P::kShare * kColumns;
#pragma unroll
        for (int part = 0; part < P::kShare / kWidth * (P::kPerThread / P::kPass); ++part) {
            const int k = part / (P::kPerThread / P::kPass) * kWidth;
            const int n0 = part % (P::kPerThread / P::kPass) * P::kPass;
            T right[kWidth][P::kPass];
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
#pragma unroll
                for (int v = 0; v < kVectors; ++v) {
                    T values[kWidth];
                    eqc::load16(b + (k + i) * kColumns + place.column(n0 / kWidth + v), values);
#pragma unroll
                    for (int n = 0; n < kWidth; ++n) {
                        right[i][v * kWidth + n] = values[n];
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < 8; ++r) {
                T left[kWidth];
                eqc::load16(a + 8 * r * Shape<T>::kPitch + step * P::kDepth + k, left);
#pragma unroll
                for (int i = 0; i < kWidth; ++i) {
#pragma unroll
                    for (int n = 0; n < P::kPass; ++n) {
                        sums[r][n0 + n] += left[i] * right[i][n];
                    }
                }
            }
        }
    }
}

/* Puts the groups' sums into the tile's memory, as kGroups matrices [64][kColumns]; barriers around. */
template <class T, int kColumns>
__device__ __forceinline__ void deposit(const T (&sums)[8][Product<T, kColumns>::kPerThread], eqc_shared_ptr<T> tile) {
    using P = Product<T, kColumns>;
    const P place;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int v = 0; v < P::kPerThread / P::kWidth; ++v) {
            T part[P::kWidth];
#pragma unroll
            for (int n = 0; n < P::kWidth; ++n) {
                part[n] = sums[r][v * P::kWidth + n];
            }
            eqc::store16(tile + (place.group * kRows + place.row + 8 * r) * kColumns + place.column(v), part);
        }
    }
    __syncthreads();
}

/* Four consecutive elements of the sum of what deposit left. */
template <class T, int kColumns>
__device__ __forceinline__ void deposited(eqc_shared_ptr<T> tile, int at, T (&sum)[4]) {
    eqc::load<T, 4>(tile + at, true, 4, sum);
#pragma unroll
    for (int group = 1; group < Product<T, kColumns>::kGroups; ++group) {
        T part[4];
        eqc::load<T, 4>(tile + group * kRows * kColumns + at, true, 4, part);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum[i] += part[i];
        }
    }
}

template <class T, int kColumns>
__device__ __forceinline__ void clear_sums(T (&sums)[8][Product<T, kColumns>::kPerThread]) {
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int n = 0; n < Product<T, kColumns>::kPerThread; ++n) {
            sums[r][n] = 0;
        }
    }
}

/* ---- The centring constant ------------------------------------------------------------------------------------- */

template <class T>
struct Centring {
    const T* x;
    int64_t cols;
    int channels;
    int matrices;
    const T* u;
    const T* v;
    const T* c;
    T* mean;   // [C]
    T* shift;  // [M] c + (u + v)^T mean
};

/* One block: the mean of at most kSamples evenly spaced rows of x without what is not finite, and the constant that
 * makes up for subtracting it. */
template <class T>
__global__ void __launch_bounds__(1024) centring(Centring<T> p) {
    EQC_SHARED_ARRAY(double, sums, 32 * 32);
    EQC_SHARED_ARRAY(int, counts, 32 * 32);
    const int lane = lane_index();
    const int warp = warp_index();
    auto mean = eqc_view(p.mean, p.channels);
    auto shift = eqc_view(p.shift, p.matrices);
    const int64_t samples = p.cols < kSamples ? p.cols : kSamples;
    for (int c0 = 0; c0 < p.channels; c0 += 32) {
        double sum = 0;
        int count = 0;
        if (c0 + lane < p.channels) {
#pragma unroll 8
            for (int64_t k = warp; k < samples; k += 32) {
                const T value = p.x[k * p.cols / samples * p.channels + c0 + lane];
                if (value - value == 0) {
                    sum += double(value);
                    count += 1;
                }
            }
        }
        sums[warp * 32 + lane] = sum;
        counts[warp * 32 + lane] = count;
        __syncthreads();
        if (warp == 0 && c0 + lane < p.channels) {
            double total = 0;
            int used = 0;
            for (int k = 0; k < 32; ++k) {
                total += sums[k * 32 + lane];
                used += counts[k * 32 + lane];
            }
            const T rounded = used > 0 ? T(total / used) : T(0);
            mean[c0 + lane] = rounded - rounded == 0 ? rounded : T(0);
        }
        __syncthreads();
    }
    for (int m = warp; m < p.matrices; m += 32) {
        double sum = 0;
        for (int c = lane; c < p.channels; c += 32) {
            const int64_t at = int64_t(c) * p.matrices + m;
            sum += (double(p.u[at]) + double(p.v[at])) * double(mean[c]);
        }
        sum = eqc::group_sum<32>(sum);
        if (lane == 0) {
            shift[m] = T(sum + double(p.c[m]));
        }
    }
}

/* ---- Logits at the vertices -------------------------------------------------------------------------------------- */

template <class T>
struct LogitPart {
    const T* weight;    // [C, M]
    const T* constant;  // [M] or NULL
    T* out;             // [rows, M]
    T* out_exp;         // [rows, M] or NULL
    int64_t rows;
};

template <class T>
struct Logits {
    const T* features;  // [., C]
    const T* mean;      // [C]
    int channels;
    int matrices;
    bool vectors;
    LogitPart<T> part[2];
};

constexpr int kLogitRows = 128;  // rows of a block: 16 a warp, 4 a lane
constexpr int kLogitMatrices = 8;

/* part[k].out = (features - mean) weight + constant for kParts weights at a time; a lane has 4 rows of one matrix.
 * With at most 8 matrices the factors are made here too. */
template <class T, int kParts>
__global__ void __launch_bounds__(kThreads) logits(Logits<T> p) {
    EQC_SHARED_ARRAY(T, weights, kParts * 32 * kLogitMatrices);
    EQC_SHARED_ARRAY(T, means, 32);
    const auto mean_of = eqc_view(p.mean, p.channels);
    const int lane = lane_index();
    const int m = int(blockIdx.y) * kLogitMatrices + lane % kLogitMatrices;
    const int64_t row0 = int64_t(blockIdx.x) * kLogitRows + warp_index() * 16 + lane / kLogitMatrices;
    int64_t rows = 0;
    for (int part = 0; part < kParts; ++part) {
        rows = p.part[part].rows > rows ? p.part[part].rows : rows;
    }
    T sums[kParts][4] = {};
    for (int c0 = 0; c0 < p.channels; c0 += 32) {
        __syncthreads();
        for (int k = int(threadIdx.x); k < 32 * kLogitMatrices; k += kThreads) {
            const int c = c0 + k / kLogitMatrices;
            const int column = int(blockIdx.y) * kLogitMatrices + k % kLogitMatrices;
            const bool real = c < p.channels && column < p.matrices;
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                weights[part * 32 * kLogitMatrices + k] =
                    real ? p.part[part].weight[int64_t(c) * p.matrices + column] : T(0);
            }
        }
        if (threadIdx.x < 32) {
            means[threadIdx.x] = c0 + int(threadIdx.x) < p.channels ? T(mean_of[c0 + threadIdx.x]) : T(0);
        }
        __syncthreads();
        const int width = p.channels - c0 < 32 ? p.channels - c0 : 32;
        for (int c = 0; c < width; c += 4) {
            T x[4][4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int64_t row = row0 + 4 * r;
                eqc::load<T, 4>(p.features + row * p.channels + c0 + c, p.vectors, row < rows ? width - c : 0, x[r]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const T mean = means[c + i];
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    const T weight =
                        weights[part * 32 * kLogitMatrices + (c + i) * kLogitMatrices + lane % kLogitMatrices];
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        sums[part][r] += (x[r][i] - mean) * weight;
                    }
                }
            }
        }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        const LogitPart<T> q = p.part[part];
        const auto constant = eqc_view(q.constant, q.constant == nullptr ? 0 : p.matrices);
        auto out = eqc_view(q.out, q.rows * p.matrices);
        auto out_exp = eqc_view(q.out_exp, q.out_exp == nullptr ? 0 : q.rows * p.matrices);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int64_t row = row0 + 4 * r;
            const bool real = row < q.rows && m < p.matrices;
            const T logit = sums[part][r] + (q.constant != nullptr && m < p.matrices ? T(constant[m]) : T(0));
            if (real) {
                out[row * p.matrices + m] = logit;
            }
            if (q.out_exp != nullptr && p.matrices <= kLogitMatrices) {
                const T largest =
                    eqc::group_max<kLogitMatrices>(real ? logit : Shape<T>::kLowest);
                if (real) {
                    out_exp[row * p.matrices + m] = eqc::exponential(logit - largest);
                }
            }
        }
    }
}

/* out[row, m] = exp(in[row, m] - largest of the row), a warp a row. */
template <class T>
__global__ void __launch_bounds__(kThreads) factors(const T* in_pointer, T* out_pointer, int64_t rows,
                                                    int matrices) {
    const auto in = eqc_view(in_pointer, rows * matrices);
    auto out = eqc_view(out_pointer, rows * matrices);
    const int64_t row = int64_t(blockIdx.x) * kWarps + warp_index();
    if (row >= rows) {
        return;
    }
    T largest = Shape<T>::kLowest;
    for (int m = lane_index(); m < matrices; m += 32) {
        const T logit = in[row * matrices + m];
        largest = logit > largest ? logit : largest;
    }
    largest = eqc::group_max<32>(largest);
    for (int m = lane_index(); m < matrices; m += 32) {
        out[row * matrices + m] = eqc::exponential(in[row * matrices + m] - largest);
    }
}

/* ---- Forward ---------------------------------------------------------------------------------------------------- */

template <class T>
struct Fused {
    Steering<T> steering;
    const T* x;  // [., C]
    const T* w;  // [M, C, D]
    const T* b;  // [D] or NULL
    T* y;        // [rows, D]
    int channels;
    int outputs;
    bool vectors_w;
    bool vectors_y;
    bool relu;
};

template <class T>
__device__ __forceinline__ T finished(T sum, T bias, bool relu) {
    const T y = sum + bias;
    return relu && y < T(0) ? T(0) : y;  // a NaN stays
}

/* y = z W + b for 64 rows and kColumns outputs, chunk after chunk of z. */
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) fused(Fused<T> p) {
    using P = Product<T, kColumns>;
    using S = Shape<T>;
    EQC_SHARED_ARRAY(int64_t, first, kRows + 1);
    const auto tile = eqc_dynamic_shared<T>(0);
    const auto slabs = eqc_dynamic_shared<T>(S::kSlabAt);
    const auto batches = eqc_dynamic_shared<T>(S::kBatchAt);
    const int64_t row0 = int64_t(blockIdx.x) * kRows;
    const int n0 = int(blockIdx.y) * kColumns;
    const int stride = chunk_stride(p.channels);
    load_starts(p.steering.start, p.steering.rows, row0, first);
    __syncthreads();
    const Staged<T> staged(S::kStagedAt, first[0]);
    stage_edges(p.steering, first[kRows], staged);
    T sums[8][P::kPerThread];
    clear_sums<T, kColumns>(sums);
    bool again = false;
    for (int m0 = 0; m0 < p.steering.matrices; m0 += S::kMatrices) {
        const int matrices = p.steering.matrices - m0 < S::kMatrices ? p.steering.matrices - m0 : S::kMatrices;
        const int depth = matrices * stride;
        const int padded = (depth + P::kDepth - 1) / P::kDepth * P::kDepth;
        for (int c0 = 0; c0 < p.channels; c0 += kLane) {
            const WeightRows<T> rows{p.w, int64_t(m0) * p.channels + c0, p.channels,  c0, depth,
                                     n0,  p.outputs,                     p.vectors_w};
            __syncthreads();
            start_slab<T, kColumns>(slabs, rows, 0);
            gather_tile(p.steering, p.x, p.channels, c0, m0, row0, first, padded, again, tile, batches, staged);
            multiply<T, kColumns>(sums, tile, slabs, rows, depth);
            again = true;
        }
    }
    deposit<T, kColumns>(sums, tile);
    auto y = eqc_view(p.y, p.steering.rows * p.outputs);
    for (int at = 4 * int(threadIdx.x); at < kRows * kColumns; at += 4 * kThreads) {
        const int64_t row = row0 + at / kColumns;
        const int n = n0 + at % kColumns;
        if (row < p.steering.rows && n < p.outputs) {
            T sum[4];
            deposited<T, kColumns>(tile, at, sum);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum[i] = finished(sum[i], p.b != nullptr && n + i < p.outputs ? p.b[n + i] : T(0), p.relu);
            }
            eqc::store<T, 4>(y + row * p.outputs + n, p.vectors_y, p.outputs - n, sum);
        }
    }
}

template <class T>
struct Transformed {
    const T* x;  // [rows, C]
    const T* w;  // [M, C, D]
    T* h;        // [rows, M, D]
    int64_t rows;
    int channels;
    int outputs;
    int matrices;
    bool vectors_x;
    bool vectors_w;
};

/* h_jm = W_m^T x_j for 64 vertices and kColumns of the M D outputs. */
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) transform(Transformed<T> p) {
    using P = Product<T, kColumns>;
    using S = Shape<T>;
    const auto tile = eqc_dynamic_shared<T>(0);
    const auto slabs = eqc_dynamic_shared<T>(S::kSlabAt);
    const int64_t row0 = int64_t(blockIdx.x) * kRows;
    const int n0 = int(blockIdx.y) * kColumns;
    const int64_t columns = int64_t(p.matrices) * p.outputs;
    const int rows = p.rows - row0 < kRows ? int(p.rows - row0) : kRows;
    T sums[8][P::kPerThread];
    clear_sums<T, kColumns>(sums);
    for (int c0 = 0; c0 < p.channels; c0 += S::kChunk) {
        const int depth = p.channels - c0 < S::kChunk ? p.channels - c0 : S::kChunk;
        const int padded = (depth + P::kDepth - 1) / P::kDepth * P::kDepth;
        Segments<T> source{p.w + int64_t(c0) * p.outputs,
                           int64_t(p.channels) * p.outputs,
                           p.outputs,
                           p.matrices,
                           p.outputs,
                           p.outputs,
                           depth,
                           p.vectors_w};
        source.seek(n0 + first_copied<kColumns>());
        __syncthreads();
        start_slab<T, kColumns>(slabs, source, 0);
        start_rows(tile, S::kPitch, p.x + row0 * p.channels + c0, p.channels, rows, depth, padded, p.vectors_x);
        multiply<T, kColumns>(sums, tile, slabs, source, depth);
    }
    deposit<T, kColumns>(sums, tile);
    auto h = eqc_view(p.h, p.rows * columns);
    for (int at = 4 * int(threadIdx.x); at < kRows * kColumns; at += 4 * kThreads) {
        const int64_t row = row0 + at / kColumns;
        const int64_t n = n0 + at % kColumns;
        if (row < p.rows && n < columns) {
            T sum[4];
            deposited<T, kColumns>(tile, at, sum);
            eqc::store<T, 4>(h + row * columns + n, columns % S::kWidth == 0, columns - n < 4 ? int(columns - n) : 4,
                             sum);
        }
    }
}

template <class T>
struct GatherTransformed {
    Steering<T> steering;
    const T* h;  // [., M, D]
    const T* b;
    T* y;
    int64_t cols;
    int outputs;
    bool relu;
};

constexpr int kPanel = 128;  // outputs of a warp at a time, 4 a lane

/* acc += sum over the row's edges of p_ijm h_jm, for outputs n0 + lane + 32 i. */
template <class T>
__device__ __forceinline__ void gather_transformed(const GatherTransformed<T>& p, int64_t row, int n0, int phase,
                                                   int stride, eqc_shared_ptr<T> batch, T (&sums)[4]) {
    constexpr int kMatrices = Shape<T>::kMatrices;
    constexpr int kEdges = Shape<T>::kEdges;
    const Steering<T>& s = p.steering;
    const int lane = lane_index();
    const int64_t end = s.start[row + 1];
    const auto transformed = eqc_view(p.h, p.cols * s.matrices * p.outputs);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sums[i] = 0;
    }
    for (int64_t base = s.start[row] + int64_t(phase) * kBatch; base < end; base += int64_t(stride) * kBatch) {
        const int count = end - base < kBatch ? int(end - base) : kBatch;
        const int32_t column = lane < count ? s.neighbour[base + lane] : 0;
        const T weight = lane < count ? s.values[edge_at(s, base + lane)] : T(0);
        for (int m0 = 0; m0 < s.matrices; m0 += kMatrices) {
            const int matrices = s.matrices - m0 < kMatrices ? s.matrices - m0 : kMatrices;
            const T factor = own_factor(s, row, m0);
            for (int step = 0; step < count; step += kEdges) {
                const int e = step + lane / kMatrices;
                const int32_t j = __shfl_sync(kAllLanes, column, e);
                const T w = __shfl_sync(kAllLanes, weight, e);
                batch[step * kMatrices + lane] = w * assignment(s, row, m0, factor, e < count, j, batch, -1, false);
            }
            __syncwarp();
            for (int e = 0; e < count; ++e) {
                const int32_t j = __shfl_sync(kAllLanes, column, e);
                const auto h = transformed + ((int64_t(j) * s.matrices + m0) * p.outputs + n0 + lane);
                for (int k = 0; k < matrices; ++k) {
                    const T q = batch[e * kMatrices + k];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        if (n0 + lane + 32 * i < p.outputs) {
                            sums[i] += q * h[k * p.outputs + 32 * i];
                        }
                    }
                }
            }
            __syncwarp();
        }
    }
}

/* y from h, a warp a row and the whole block for a long one. */
template <class T>
__global__ void __launch_bounds__(kThreads, 3) gather_outputs(GatherTransformed<T> p) {
    EQC_SHARED_ARRAY(T, batches, kWarps * kBatch * Shape<T>::kMatrices);
    EQC_SHARED_ARRAY(T, partial, kWarps * kPanel);
    const int lane = lane_index();
    const int warp = warp_index();
    const int n0 = int(blockIdx.y) * kPanel;
    const int64_t row0 = int64_t(blockIdx.x) * kWarps;
    const eqc_shared_ptr<T> batch = eqc_shared_ptr<T>(batches) + warp * kBatch * Shape<T>::kMatrices;
    auto y = eqc_view(p.y, p.steering.rows * p.outputs);
    T sums[4];
    for (int t = 0; t <= kWarps; ++t) {  // first each warp its own row, then the long rows together
        const int64_t row = row0 + (t == 0 ? warp : t - 1);
        if (row >= p.steering.rows) {
            continue;
        }
        const bool is_long = p.steering.start[row + 1] - p.steering.start[row] > kLongRow;
        if (is_long == (t == 0)) {
            continue;
        }
        gather_transformed(p, row, n0, t == 0 ? 0 : warp, t == 0 ? 1 : kWarps, batch, sums);
        if (t > 0) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                partial[warp * kPanel + lane + 32 * i] = sums[i];
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[i] = 0;
                for (int k = 0; k < kWarps && warp == 0; ++k) {
                    sums[i] += partial[k * kPanel + lane + 32 * i];
                }
            }
            __syncthreads();
        }
        if (t == 0 || warp == 0) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int n = n0 + lane + 32 * i;
                if (n < p.outputs) {
                    y[row * p.outputs + n] = finished(sums[i], p.b[n], p.relu);
                }
            }
        }
    }
}

/* ---- Backward --------------------------------------------------------------------------------------------------- */

template <class T>
__global__ void __launch_bounds__(kThreads) clear(T* pointer, int64_t count) {
    auto out = eqc_view(pointer, count);
    for (int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x; k < count; k += int64_t(gridDim.x) * kThreads) {
        out[k] = T(0);
    }
}

template <class T>
struct Cotangent {
    const T* dy;
    const T* y;       // NULL without ReLU
    T* masked;        // dy where y > 0, else 0; NULL without ReLU
    double* partial;  // [slices, D] or NULL
    int64_t rows;
    int64_t slice_rows;
    int outputs;
};

/* The cotangent behind the ReLU, and each slice's sums of it over the rows. */
template <class T>
__global__ void __launch_bounds__(kThreads) cotangent(Cotangent<T> p) {
    EQC_SHARED_ARRAY(double, sums, kWarps * 32);
    const int n = int(blockIdx.y) * 32 + lane_index();
    const int64_t begin = blockIdx.x * p.slice_rows;
    const int64_t end = begin + p.slice_rows < p.rows ? begin + p.slice_rows : p.rows;
    auto masked = eqc_view(p.masked, p.masked == nullptr ? 0 : p.rows * p.outputs);
    double sum = 0;
    if (n < p.outputs) {
#pragma unroll 4
        for (int64_t row = begin + warp_index(); row < end; row += kWarps) {
            const int64_t at = row * p.outputs + n;
            T value = p.dy[at];
            if (p.y != nullptr) {
                value = p.y[at] > T(0) ? value : T(0);
                masked[at] = value;
            }
            sum += double(value);
        }
    }
    if (p.partial == nullptr) {
        return;
    }
    auto partial = eqc_view(p.partial, int64_t(gridDim.x) * p.outputs);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() == 0 && n < p.outputs) {
        double total = 0;
        for (int k = 0; k < kWarps; ++k) {
            total += sums[k * 32 + lane_index()];
        }
        partial[int64_t(blockIdx.x) * p.outputs + n] = total;
    }
}

template <class T>
struct WeightGradient {
    Steering<T> steering;
    const T* x;
    const T* g;  // [rows, D] cotangent
    T* partial;  // [slices, M, C, D]
    int channels;
    int outputs;
    int chunks_across;  // chunks of 32 channels
    bool vectors_g;
};

template <class T, int kColumns>
struct WeightShape {
    static constexpr size_t kGAt = Shape<T>::kTileBytes;
    static constexpr size_t kBatchAt = kGAt + sizeof(T) * kRows * kColumns;
    static constexpr size_t kStagedAt = kBatchAt + Shape<T>::kBatchBytes;
    static constexpr size_t kSharedBytes = kStagedAt + Shape<T>::kStagedBytes;
};

/* dW = z^T G for one chunk of z and kColumns outputs: the block gathers every gridDim.x-th tile of z and keeps its sums
 * in registers until the end. */
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) weight_gradient(WeightGradient<T> p) {
    using S = Shape<T>;
    using W = WeightShape<T, kColumns>;
    constexpr int kWidth = S::kWidth;
    constexpr int kAcross = kColumns / 8;                         // columns of a thread
    constexpr int kDown = S::kChunk * kColumns / kThreads / kAcross;  // rows of a thread: k
    EQC_SHARED_ARRAY(int64_t, first, kRows + 1);
    const auto tile = eqc_dynamic_shared<T>(0);
    const auto g = eqc_dynamic_shared<T>(W::kGAt);
    const auto batches = eqc_dynamic_shared<T>(W::kBatchAt);
    const int m0 = int(blockIdx.y) / p.chunks_across * S::kMatrices;
    const int c0 = int(blockIdx.y) % p.chunks_across * kLane;
    const int n0 = int(blockIdx.z) * kColumns;
    const int stride = chunk_stride(p.channels);
    const int matrices = p.steering.matrices - m0 < S::kMatrices ? p.steering.matrices - m0 : S::kMatrices;
    const int depth = matrices * stride;
    const int padded = (depth + kWidth - 1) / kWidth * kWidth;
    const int across = (lane_index() % 4 + 4 * (warp_index() % 2)) * kWidth;
    const int down = (lane_index() / 4 + 8 * (warp_index() / 2)) * kWidth;
    T sums[kDown][kAcross] = {};
    for (int64_t row0 = int64_t(blockIdx.x) * kRows; row0 < p.steering.rows; row0 += int64_t(gridDim.x) * kRows) {
        __syncthreads();
        load_starts(p.steering.start, p.steering.rows, row0, first);
        const int rows = p.steering.rows - row0 < kRows ? int(p.steering.rows - row0) : kRows;
        start_rows(g, kColumns, p.g + row0 * p.outputs + n0, p.outputs, rows, p.outputs - n0, kColumns, p.vectors_g);
        __syncthreads();
        const Staged<T> staged(W::kStagedAt, first[0]);
        stage_edges(p.steering, first[kRows], staged);
        __syncthreads();
        gather_tile(p.steering, p.x, p.channels, c0, m0, row0, first, padded, false, tile, batches, staged);
        eqc::copies_arrive();
        __syncthreads();
        if (down < padded) {
#pragma unroll 2
            for (int t = 0; t < kRows; ++t) {
                T left[kDown];
                T right[kAcross];
#pragma unroll
                for (int i = 0; i < kDown; i += kWidth) {
                    T part[kWidth] = {};
                    if (down + i * 32 < padded) {
                        eqc::load16(tile + t * S::kPitch + down + i * 32, part);
                    }
#pragma unroll
                    for (int k = 0; k < kWidth; ++k) {
                        left[i + k] = part[k];
                    }
                }
#pragma unroll
                for (int i = 0; i < kAcross; i += kWidth) {
                    T part[kWidth];
                    eqc::load16(g + t * kColumns + across + i * 8, part);
#pragma unroll
                    for (int k = 0; k < kWidth; ++k) {
                        right[i + k] = part[k];
                    }
                }
#pragma unroll
                for (int i = 0; i < kDown; ++i) {
#pragma unroll
                    for (int n = 0; n < kAcross; ++n) {
                        sums[i][n] += left[i] * right[n];
                    }
                }
            }
        }
    }
    const int64_t size = int64_t(p.steering.matrices) * p.channels * p.outputs;
    auto partial = eqc_view(p.partial, gridDim.x * size);
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
        const int k = down + i / kWidth * 32 * kWidth + i % kWidth;
        const int c = c0 + k % stride;
        if (k >= depth || c >= p.channels) {
            continue;
        }
        const int64_t row = int64_t(m0 + k / stride) * p.channels + c;
#pragma unroll
        for (int n = 0; n < kAcross; ++n) {
            const int column = n0 + across + n / kWidth * 8 * kWidth + n % kWidth;
            if (column < p.outputs) {
                partial[blockIdx.x * size + row * p.outputs + column] = sums[i][n];
            }
        }
    }
}

template <class T>
struct RowGradient {
    Steering<T> steering;
    const T* x;   // [cols, C]
    const T* g;   // [rows, D]
    const T* wt;  // [M, D, C]
    T* dx;        // [cols, C], added to; NULL: not wanted, or left to the column pass
    T* ds;        // [cols, M], likewise
    T* da;        // [rows, M] or NULL
    T* dvalues;   // or NULL
    T* dlogits;   // [edges, M]; NULL when one chunk suffices and nothing else reads them
    T* means;     // [edges] over the matrices, of what exceeds the top; NULL when one chunk suffices
    T* tops;      // [edges] g of the likeliest matrix; likewise
    int64_t cols;
    int64_t edges;
    int64_t given_edges;
    int channels;
    int outputs;
    bool keep;  // leave the gradients of the logits in dlogits
    bool vectors_x;
    bool vectors_g;
    bool vectors_wt;
    bool vectors_dx;
};

/* Adds up to one vector to memory that other blocks add to as well. */
template <class Pointer, int kCount, class T>
__device__ __forceinline__ void add(Pointer to, bool vectors, int valid, const T (&value)[kCount]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (sizeof(T) == 4 && kCount == 4) {
        if (vectors) {
            if (valid > 0) {
                atomicAdd(reinterpret_cast<float4*>(to), make_float4(value[0], value[1], value[2], value[3]));
            }
            return;
        }
    }
#endif
    (void)vectors;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (i < valid) {
            atomicAdd(to + i, value[i]);
        }
    }
}

/* The value of the group's lane whose key is largest, the same in all its lanes. */
template <int kLanes, class T>
__device__ __forceinline__ T of_largest(T key, T value) {
    const int first = lane_index() / kLanes * kLanes;
    const unsigned holders = __ballot_sync(kAllLanes, key == eqc::group_max<kLanes>(key)) >> first;
    return __shfl_sync(kAllLanes, value, first + ((__ffs(int(holders)) - 1) & (kLanes - 1)));  // none: NaN keys
}

/* One pass of a warp over the edges of a row, for one chunk (m0, c0) of dz: lane l has matrix m0 + l % kMatrices of
 * edge l / kMatrices of the step, and kPer channels of the row's dz for every matrix. With a single chunk (`whole`)
 * the edges are finished here and the sum of the gradients of this lane's logit is returned. */
template <class T>
__device__ __forceinline__ T sweep(const RowGradient<T>& p, eqc_shared_ptr<T> dz_row, int m0, int c0, int64_t row,
                                   int64_t begin, int64_t end, int phase, int stride_steps, const Staged<T>& staged,
                                   eqc_shared_ptr<T> batch, bool again, bool whole) {
    using S = Shape<T>;
    constexpr int kLanes = S::kMatrices;
    constexpr int kWidth = S::kWidth;
    constexpr int kPer = kLane / kLanes;
    const Steering<T>& s = p.steering;
    const int lane = lane_index();
    const int m = m0 + lane % kLanes;
    const int stride = chunk_stride(p.channels);
    const int width = p.channels - c0 < kLane ? p.channels - c0 : kLane;
    const int channel = lane % kLanes * kWidth;  // and again every kLanes * kWidth
    auto dx = eqc_view(p.dx, p.dx == nullptr ? 0 : p.cols * p.channels);
    auto ds = eqc_view(p.ds, p.ds == nullptr ? 0 : p.cols * s.matrices);
    auto dvalues = eqc_view(p.dvalues, p.dvalues == nullptr ? 0 : p.given_edges);
    auto dlogits = eqc_view(p.dlogits, p.dlogits == nullptr ? 0 : p.edges * s.matrices);
    T dz[kLanes][kPer];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
#pragma unroll
        for (int i = 0; i < kPer; i += kWidth) {
            T part[kWidth];
            eqc::load<T, kWidth>(dz_row + k * stride + channel + i * kLanes, stride % kWidth == 0,
                                 m0 + k < s.matrices ? width - channel - i * kLanes : 0, part);
#pragma unroll
            for (int n = 0; n < kWidth; ++n) {
                dz[k][i + n] = part[n];
            }
        }
    }
    const T factor = own_factor(s, row, m0);
    const auto source = [&](int64_t base) {  // the column at the other end of this lane's edge of a step
        const int64_t position = base + lane / kLanes;
        const int place = staged.place(base, S::kEdges, lane / kLanes);
        return position >= end ? 0 : place >= 0 ? int32_t(staged.column[place]) : s.neighbour[position];
    };
    T x[kPer];
    const auto load_features = [&](int32_t j, bool valid) {
#pragma unroll
        for (int i = 0; i < kPer; i += kWidth) {
            T part[kWidth];
            const int at = channel + i * kLanes;
            eqc::load<T, kWidth>(p.x + int64_t(j) * p.channels + c0 + at, p.vectors_x, valid ? width - at : 0, part);
#pragma unroll
            for (int n = 0; n < kWidth; ++n) {
                x[i + n] = part[n];
            }
        }
    };
    T da = 0;
    int64_t base = begin + int64_t(phase) * S::kEdges;
    int32_t j = source(base);
    load_features(j, base + lane / kLanes < end);
#pragma unroll 1
    while (base < end) {
        const int64_t position = base + lane / kLanes;
        const bool valid = position < end;
        const bool mine = valid && m < s.matrices;
        const int place = staged.place(base, S::kEdges, lane / kLanes);
        const T weight =
            !valid ? T(0) : place >= 0 ? T(staged.weight[place]) : s.values[edge_at(s, position)];
        T terms[kLanes];
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
            terms[k] = 0;
#pragma unroll
            for (int i = 0; i < kPer; ++i) {
                terms[k] += dz[k][i] * x[i];
            }
        }
        const int64_t next = base + int64_t(stride_steps) * S::kEdges;
        const int32_t next_j = source(next);
        load_features(next_j, next + lane / kLanes < end);  // they are on their way while this step goes on
        const T g = eqc::group_sums<kLanes>(terms, lane);
        T q = 0;
        if (whole || p.dx != nullptr) {
            q = assignment(s, row, m0, factor, valid, j, staged.total, place, again);
        }
        if (p.dx != nullptr) {
            batch[lane] = weight * q;
            __syncwarp();
            T share[kLanes];
            eqc::load<T, kLanes>(batch + lane / kLanes * kLanes, true, kLanes, share);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < kPer; i += kWidth) {
                T part[kWidth] = {};
#pragma unroll
                for (int n = 0; n < kWidth; ++n) {
#pragma unroll
                    for (int k = 0; k < kLanes; ++k) {
                        part[n] += share[k] * dz[k][i + n];
                    }
                }
                const int at = channel + i * kLanes;
                add(dx + (int64_t(j) * p.channels + c0 + at), p.vectors_dx, valid ? width - at : 0, part);
            }
        }
        if (whole) {
            /* Means are taken of what exceeds the likeliest matrix: in a saturated softmax all digits are in the
             * difference. */
            const T top = of_largest<kLanes>(q, g);
            const T mean = eqc::group_sum<kLanes>(mine ? q * (g - top) : T(0));
            if (mine) {
                const T dl = weight * q * ((g - top) - mean);
                da += dl;
                if (p.keep) {
                    dlogits[position * s.matrices + m] = dl;
                } else if (p.ds != nullptr) {
                    atomicAdd(ds + (int64_t(j) * s.matrices + m), dl);
                }
            }
            if (p.dvalues != nullptr && valid && lane % kLanes == 0) {
                dvalues[edge_at(s, position)] = mean + top;
            }
        } else if (mine) {
            const int64_t at = position * s.matrices + m;
            dlogits[at] = c0 == 0 ? g : T(dlogits[at]) + g;
        }
        base = next;
        j = next_j;
    }
    return da;
}

/* After all chunks: each edge's mean over the matrices, in two parts, see `sweep`. */
template <class T>
__device__ __forceinline__ void sweep_means(const RowGradient<T>& p, int64_t row, int64_t begin, int64_t end, int phase,
                                            int stride_steps, const Staged<T>& staged, bool filled) {
    using S = Shape<T>;
    constexpr int kLanes = S::kMatrices;
    const Steering<T>& s = p.steering;
    const int lane = lane_index();
    auto dvalues = eqc_view(p.dvalues, p.dvalues == nullptr ? 0 : p.given_edges);
    auto means = eqc_view(p.means, p.edges);
    auto tops = eqc_view(p.tops, p.edges);
    auto dlogits = eqc_view(p.dlogits, p.edges * s.matrices);
#pragma unroll 1
    for (int64_t base = begin + int64_t(phase) * S::kEdges; base < end; base += int64_t(stride_steps) * S::kEdges) {
        const int64_t position = base + lane / kLanes;
        const bool valid = position < end;
        const int32_t j = valid ? s.neighbour[position] : 0;
        T largest = 0;  // q among this lane's matrices so far
        T top = 0;      // g of the matrix that has it
        T mean = 0;     // of what exceeds the top
        T total = 0;    // q
#pragma unroll 1
        for (int m0 = 0; m0 < s.matrices; m0 += kLanes) {
            const int m = m0 + lane % kLanes;
            __syncwarp();
            const T q = assignment(s, row, m0, own_factor(s, row, m0), valid, j, staged.total,
                                   staged.place(base, S::kEdges, lane / kLanes), filled || m0 > 0);
            if (valid && m < s.matrices) {
                const T g = dlogits[position * s.matrices + m];
                if (q > largest) {
                    mean += total * (top - g);
                    largest = q;
                    top = g;
                }
                mean += q * (g - top);
                total += q;
            }
        }
        const T common = of_largest<kLanes>(largest, top);
        mean = eqc::group_sum<kLanes>(mean + total * (top - common));
        if (valid && lane % kLanes == 0) {
            means[position] = mean;
            tops[position] = common;
            if (p.dvalues != nullptr) {
                dvalues[edge_at(s, position)] = mean + common;
            }
        }
    }
}

/* And then the gradients of the logits of one chunk of matrices. */
template <class T>
__device__ __forceinline__ T sweep_logits(const RowGradient<T>& p, int m0, int64_t row, int64_t begin, int64_t end,
                                          int phase, int stride_steps, const Staged<T>& staged) {
    using S = Shape<T>;
    constexpr int kLanes = S::kMatrices;
    const Steering<T>& s = p.steering;
    const int lane = lane_index();
    const int m = m0 + lane % kLanes;
    auto ds = eqc_view(p.ds, p.ds == nullptr ? 0 : p.cols * s.matrices);
    auto dlogits = eqc_view(p.dlogits, p.edges * s.matrices);
    const auto means = eqc_view(p.means, p.edges);
    const auto tops = eqc_view(p.tops, p.edges);
    const T factor = own_factor(s, row, m0);
    T da = 0;
#pragma unroll 1
    for (int64_t base = begin + int64_t(phase) * S::kEdges; base < end; base += int64_t(stride_steps) * S::kEdges) {
        const int64_t position = base + lane / kLanes;
        const bool valid = position < end;
        const int32_t j = valid ? s.neighbour[position] : 0;
        const T q = assignment(s, row, m0, factor, valid, j, staged.total,
                               staged.place(base, S::kEdges, lane / kLanes), true);
        T mean = 0;
        T top = 0;
        if (valid && lane % kLanes == 0) {  // read by the lane that wrote them, so that no barrier is needed
            mean = means[position];
            top = tops[position];
        }
        mean = __shfl_sync(kAllLanes, mean, lane / kLanes * kLanes);
        top = __shfl_sync(kAllLanes, top, lane / kLanes * kLanes);
        if (valid && m < s.matrices) {
            const int64_t at = position * s.matrices + m;
            const T dl = s.values[edge_at(s, position)] * q * ((T(dlogits[at]) - top) - mean);
            da += dl;
            if (p.keep) {
                dlogits[at] = dl;
            } else if (p.ds != nullptr) {
                atomicAdd(ds + (int64_t(j) * s.matrices + m), dl);
            }
        }
    }
    return da;
}

/* Stores the sum over the lanes' edges, of a warp or (`shared`) of the block. */
template <class T>
__device__ __forceinline__ void store_da(const RowGradient<T>& p, int64_t row, int m0, T da, bool together,
                                         eqc_shared_ptr<T> partial) {
    constexpr int kLanes = Shape<T>::kMatrices;
    const int lane = lane_index();
    const int warp = warp_index();
#pragma unroll
    for (int distance = 16; distance >= kLanes; distance /= 2) {
        da += __shfl_xor_sync(kAllLanes, da, distance);
    }
    if (together) {
        if (lane < kLanes) {
            partial[warp * kLanes + lane] = da;
        }
        __syncthreads();
        if (lane < kLanes && warp == 0) {
            da = 0;
            for (int k = 0; k < kWarps; ++k) {
                da += partial[k * kLanes + lane];
            }
        }
        __syncthreads();
    }
    if (p.da != nullptr && lane < kLanes && m0 + lane < p.steering.matrices && (!together || warp == 0)) {
        auto out = eqc_view(p.da, p.steering.rows * p.steering.matrices);
        out[row * p.steering.matrices + m0 + lane] = da;
    }
}

/* dz = G W^T for 64 rows, chunk after chunk in shared memory, and from it the gradients of the rows' edges. */
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) row_gradient(RowGradient<T> p) {
    using P = Product<T, kColumns>;
    using S = Shape<T>;
    EQC_SHARED_ARRAY(int64_t, first, kRows + 1);
    EQC_SHARED_ARRAY(T, partial_shared, kWarps * S::kMatrices);
    const eqc_shared_ptr<T> partial = partial_shared;
    const auto tile = eqc_dynamic_shared<T>(0);
    const auto slabs = eqc_dynamic_shared<T>(S::kSlabAt);
    const auto batch = eqc_dynamic_shared<T>(S::kBatchAt) + warp_index() * 32;
    const Steering<T>& s = p.steering;
    const int64_t row0 = int64_t(blockIdx.x) * kRows;
    const int stride = chunk_stride(p.channels);
    const bool whole = s.matrices <= S::kMatrices && p.channels <= kLane;
    const int tile_rows = s.rows - row0 < kRows ? int(s.rows - row0) : kRows;
    const int warp = warp_index();
    load_starts(s.start, s.rows, row0, first);
    __syncthreads();
    const int turns = kRows / kWarps + (has_long_row(first) ? kRows : 0);
    const Staged<T> staged(S::kStagedAt, first[0]);
    stage_edges(s, first[kRows], staged);
    bool again = false;
    for (int m0 = 0; m0 < s.matrices; m0 += S::kMatrices) {
        const int matrices = s.matrices - m0 < S::kMatrices ? s.matrices - m0 : S::kMatrices;
        for (int c0 = 0; c0 < p.channels; c0 += kLane) {
            {
                T sums[8][P::kPerThread];
                clear_sums<T, kColumns>(sums);
                for (int d0 = 0; d0 < p.outputs; d0 += S::kChunk) {
                    const int depth = p.outputs - d0 < S::kChunk ? p.outputs - d0 : S::kChunk;
                    const int padded = (depth + P::kDepth - 1) / P::kDepth * P::kDepth;
                    Segments<T> source{p.wt + (int64_t(m0) * p.outputs + d0) * p.channels + c0,
                                       int64_t(p.outputs) * p.channels,
                                       p.channels,
                                       matrices,
                                       stride,
                                       p.channels - c0 < stride ? p.channels - c0 : stride,
                                       depth,
                                       p.vectors_wt};
                    source.seek(first_copied<kColumns>());
                    __syncthreads();
                    start_slab<T, kColumns>(slabs, source, 0);
                    start_rows(tile, S::kPitch, p.g + row0 * p.outputs + d0, p.outputs, tile_rows, depth, padded,
                               p.vectors_g);
                    multiply<T, kColumns>(sums, tile, slabs, source, depth);
                }
                deposit<T, kColumns>(sums, tile);
                if (P::kGroups > 1) {
                    for (int at = 4 * int(threadIdx.x); at < kRows * kColumns; at += 4 * kThreads) {
                        T sum[4];
                        deposited<T, kColumns>(tile, at, sum);
                        eqc::store<T, 4>(tile + at, true, 4, sum);
                    }
                    __syncthreads();
                }
            }
            /* Each warp its own rows, then all warps together the long ones, as in gather_tile. */
#pragma unroll 1
            for (int turn = 0; turn < turns; ++turn) {
                const bool together = turn >= kRows / kWarps;
                const int t = together ? turn - kRows / kWarps : turn * kWarps + warp;
                if ((first[t + 1] - first[t] > kLongRow) != together || t >= tile_rows) {
                    continue;
                }
                const T da = sweep(p, tile + t * kColumns, m0, c0, row0 + t, first[t], first[t + 1],
                                   together ? warp : 0, together ? kWarps : 1, staged, batch, again, whole);
                if (whole) {
                    store_da(p, row0 + t, m0, da, together, partial);
                }
            }
            again = true;
        }
    }
    if (whole) {
        return;
    }
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
        const bool together = turn >= kRows / kWarps;
        const int t = together ? turn - kRows / kWarps : turn * kWarps + warp;
        const int64_t begin = first[t];
        const int64_t end = first[t + 1];
        if ((end - begin > kLongRow) != together || t >= tile_rows) {
            continue;
        }
        const int phase = together ? warp : 0;
        const int stride_steps = together ? kWarps : 1;
        sweep_means(p, row0 + t, begin, end, phase, stride_steps, staged, p.dx != nullptr);
#pragma unroll 1
        for (int m0 = 0; m0 < s.matrices; m0 += S::kMatrices) {
            const T da = sweep_logits(p, m0, row0 + t, begin, end, phase, stride_steps, staged);
            store_da(p, row0 + t, m0, da, together, partial);
        }
    }
}

template <class T>
struct ColumnLogits {
    const T* dlogits;     // [edges, M]
    T* ds;                // [cols, M]
    const int64_t* start;
    const int64_t* slot;  // by position
    int64_t cols;
    int64_t edges;
    int matrices;
};

/* ds_jm = the sum of the gradients of the logits over the edges of column j: four edges x eight matrices of a warp; a
 * long column takes the block. */
template <class T>
__global__ void __launch_bounds__(kThreads) column_logits(ColumnLogits<T> p) {
    EQC_SHARED_ARRAY(T, partial, kWarps * 8);
    const int lane = lane_index();
    const int warp = warp_index();
    const int m = int(blockIdx.y) * 8 + lane % 8;
    const auto dlogits = eqc_view(p.dlogits, p.edges * p.matrices);
    auto ds = eqc_view(p.ds, p.cols * p.matrices);
    for (int t = 0; t <= kWarps; ++t) {  // first each warp its own column, then the long ones together
        const int64_t column = int64_t(blockIdx.x) * kWarps + (t == 0 ? warp : t - 1);
        if (column >= p.cols) {
            continue;
        }
        const int64_t begin = p.start[column];
        const int64_t end = p.start[column + 1];
        if ((end - begin > kLongRow) == (t == 0)) {
            continue;
        }
        const int stride = t == 0 ? 4 : 4 * kWarps;
        T sum = 0;
        if (m < p.matrices) {
#pragma unroll 4
            for (int64_t k = begin + (t == 0 ? 0 : 4 * warp) + lane / 8; k < end; k += stride) {
                sum += dlogits[p.slot[k] * p.matrices + m];
            }
        }
        sum += __shfl_xor_sync(kAllLanes, sum, 8);
        sum += __shfl_xor_sync(kAllLanes, sum, 16);
        if (t > 0) {
            if (lane < 8) {
                partial[warp * 8 + lane] = sum;
            }
            __syncthreads();
            sum = 0;
            for (int k = 0; k < kWarps; ++k) {
                sum += partial[k * 8 + lane % 8];
            }
            __syncthreads();
        }
        if (lane < 8 && m < p.matrices && (t == 0 || warp == 0)) {
            ds[column * p.matrices + m] = sum;
        }
    }
}

template <class T>
struct LogitGradient {
    const T* centre;  // [rows, C]
    const T* x;       // [cols, C]
    const T* mean;    // [C]
    const T* da;      // [rows, M]
    const T* ds;      // [cols, M]; NULL: no dv
    T* partial_u;     // [slices, C, M]
    T* partial_v;     // [slices, C, M]
    double* partial_c;  // [slices, M]
    int64_t rows;
    int64_t cols;
    int64_t slice_rows;
    int channels;
    int matrices;
    int chunks_across;  // chunks of 32 channels
    bool vectors_centre;
    bool vectors_x;
};

/* Each slice's part of du = (centre - mean)^T da, dv = (x - mean)^T ds and dc = sum da, for 32 channels x 8 matrices: a
 * lane has 4 channels of 2 matrices, the warps take turns at the rows. */
template <class T>
__global__ void __launch_bounds__(kThreads) logit_gradient(LogitGradient<T> p) {
    EQC_SHARED_ARRAY(T, sums, kWarps * 256);
    EQC_SHARED_ARRAY(double, sums_c, kWarps * 8);
    const int lane = lane_index();
    const int warp = warp_index();
    const int c0 = int(blockIdx.y) % p.chunks_across * 32;
    const int m0 = int(blockIdx.y) / p.chunks_across * 8;
    const int c = c0 + lane % 8 * 4;
    const int m = m0 + lane / 8 * 2;
    const int64_t begin = blockIdx.x * p.slice_rows;
    const auto mean_of = eqc_view(p.mean, p.channels);
    const auto da_rows = eqc_view(p.da, p.rows * p.matrices);
    const auto ds_cols = eqc_view(p.ds, p.ds == nullptr ? 0 : p.cols * p.matrices);
    T mean[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        mean[i] = c + i < p.channels ? T(mean_of[c + i]) : T(0);
    }
    T u[4][2] = {};
    T v[4][2] = {};
    double sum_c[2] = {};
#pragma unroll 2
    for (int64_t row = begin + warp; row < begin + p.slice_rows; row += kWarps) {
        if (row < p.rows) {
            T x[4];
            eqc::load<T, 4>(p.centre + row * p.channels + c, p.vectors_centre, p.channels - c, x);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const T da = m + k < p.matrices ? T(da_rows[row * p.matrices + m + k]) : T(0);
                sum_c[k] += double(da);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    u[i][k] += (x[i] - mean[i]) * da;
                }
            }
        }
        if (p.ds != nullptr && row < p.cols) {
            T x[4];
            eqc::load<T, 4>(p.x + row * p.channels + c, p.vectors_x, p.channels - c, x);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const T ds = m + k < p.matrices ? T(ds_cols[row * p.matrices + m + k]) : T(0);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    v[i][k] += (x[i] - mean[i]) * ds;
                }
            }
        }
    }
    const int64_t size = int64_t(p.channels) * p.matrices;
    auto partial_u = eqc_view(p.partial_u, gridDim.x * size);
    auto partial_v = eqc_view(p.partial_v, p.ds == nullptr ? 0 : gridDim.x * size);
    auto partial_c = eqc_view(p.partial_c, int64_t(gridDim.x) * p.matrices);
    for (int part = 0; part < (p.ds == nullptr ? 1 : 2); ++part) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                sums[warp * 256 + (lane % 8 * 4 + i) * 8 + lane / 8 * 2 + k] = part == 0 ? u[i][k] : v[i][k];
            }
        }
        __syncthreads();
        const int at = int(threadIdx.x);
        const int channel = c0 + at / 8;
        const int matrix = m0 + at % 8;
        if (channel < p.channels && matrix < p.matrices) {
            T sum = 0;
            for (int k = 0; k < kWarps; ++k) {
                sum += sums[k * 256 + at];
            }
            const int64_t out = blockIdx.x * size + int64_t(channel) * p.matrices + matrix;
            if (part == 0) {
                partial_u[out] = sum;
            } else {
                partial_v[out] = sum;
            }
        }
    }
    if (lane % 8 == 0) {
        sums_c[warp * 8 + lane / 8 * 2] = sum_c[0];
        sums_c[warp * 8 + lane / 8 * 2 + 1] = sum_c[1];
    }
    __syncthreads();
    if (c0 == 0 && threadIdx.x < 8 && m0 + int(threadIdx.x) < p.matrices) {
        double sum = 0;
        for (int k = 0; k < kWarps; ++k) {
            sum += sums_c[k * 8 + threadIdx.x];
        }
        partial_c[int64_t(blockIdx.x) * p.matrices + m0 + threadIdx.x] = sum;
    }
}

template <class T>
struct FeatureGradient {
    const T* d[2];   // [rows of the part, M] gradients of logits; NULL: no such part
    const T* w[2];   // [C, M]
    int64_t rows[2];
    T* out;          // [out_rows, C]
    int64_t out_rows;
    int channels;
    int matrices;
    bool add;        // to what is there; else overwrite
    bool vectors;    // of d
};

constexpr int kFeatureRows = 128;  // rows of a block: 16 a warp

/* out (+)= d[0] w[0]^T + d[1] w[1]^T: the part of dx that comes through the logits; a lane a channel. */
template <class T>
__global__ void __launch_bounds__(kThreads) feature_gradient(FeatureGradient<T> p) {
    EQC_SHARED_ARRAY(T, weights, 2 * 32 * 33);
    const int lane = lane_index();
    const int warp = warp_index();
    const int c0 = int(blockIdx.y) * 32;
    const int64_t row0 = int64_t(blockIdx.x) * kFeatureRows + warp * 16;
    T sums[16] = {};
    for (int m0 = 0; m0 < p.matrices; m0 += 32) {
        const int matrices = p.matrices - m0 < 32 ? p.matrices - m0 : 32;
        __syncthreads();
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            for (int c = warp; c < 32; c += kWarps) {
                const bool real = p.d[part] != nullptr && c0 + c < p.channels && lane < matrices;
                weights[part * 32 * 33 + lane * 33 + c] =
                    real ? p.w[part][int64_t(c0 + c) * p.matrices + m0 + lane] : T(0);
            }
        }
        __syncthreads();
        for (int m = 0; m < matrices; m += 4) {
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                if (p.d[part] == nullptr) {
                    continue;
                }
                const auto gradients = eqc_view(p.d[part], p.rows[part] * p.matrices);
                T weight[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    weight[i] = weights[part * 32 * 33 + (m + i) * 33 + lane];
                }
#pragma unroll
                for (int r = 0; r < 16; ++r) {
                    T d[4];
                    eqc::load<T, 4>(gradients + ((row0 + r) * p.matrices + m0 + m), p.vectors,
                                    row0 + r < p.rows[part] ? matrices - m : 0, d);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        sums[r] += d[i] * weight[i];
                    }
                }
            }
        }
    }
    auto out = eqc_view(p.out, p.out_rows * p.channels);
    if (c0 + lane < p.channels) {
#pragma unroll
        for (int r = 0; r < 16; ++r) {
            if (row0 + r < p.out_rows) {
                const int64_t at = (row0 + r) * p.channels + c0 + lane;
                out[at] = p.add ? T(out[at]) + sums[r] : sums[r];
            }
        }
    }
}

/* ---- The calls -------------------------------------------------------------------------------------------------- */

using Arguments = eqc_feature_steered;
using eqc::ceil_div;

constexpr int64_t kLargest = int64_t(1) << 30;  // C, D, M and what the grid's y takes are ints in the kernels

template <class T>
bool in_vectors(const void* pointer, int64_t extent) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && extent % Shape<T>::kWidth == 0;
}

template <class T>
const T* typed(const void* pointer) {
    return static_cast<const T*>(pointer);
}

int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

/* Sizes and pointers that both directions need. */
int check(const Arguments& a) {
    if (a.rows < 0 || a.cols < 0 || a.edges < 0 || a.given_edges < a.edges || a.channels < 1 || a.outputs < 1 ||
        a.matrices < 1) {
        return EQC_BAD_ARGUMENT;
    }
    if (a.channels > kLargest || a.outputs > kLargest || a.matrices > kLargest || a.rows > INT32_MAX ||
        a.cols > INT32_MAX ||
        a.matrices * ceil_div(a.channels, kLane) > 65535 || ceil_div(a.matrices * a.outputs, 32) > 65535) {
        return EQC_UNSUPPORTED;
    }
    if (a.rowptr == nullptr || a.u == nullptr || a.v == nullptr || a.c == nullptr || a.w == nullptr ||
        (a.cols > 0 && a.x == nullptr) || (a.rows > 0 && a.centre == nullptr) ||
        (a.edges > 0 && (a.col == nullptr || a.values == nullptr))) {
        return EQC_BAD_ARGUMENT;
    }
    if (a.centre == a.x && a.rows > a.cols) {
        return EQC_BAD_ARGUMENT;
    }
    return EQC_OK;
}

/* Logits and factors of all vertices, and what centring subtracted. */
template <class T>
struct Vertices {
    T* mean;
    T* shift;
    T* a;
    T* s;
    T* a_exp;
    T* s_exp;

    Vertices(const Arguments& p, eqc::Space& space) {
        const bool stable = (p.flags & EQC_FS_STABLE) != 0;
        mean = space.take<T>(p.channels);
        shift = space.take<T>(p.matrices);
        a = space.take<T>(p.rows * p.matrices);
        s = space.take<T>(p.cols * p.matrices);
        a_exp = stable ? nullptr : space.take<T>(p.rows * p.matrices);
        s_exp = stable ? nullptr : space.take<T>(p.cols * p.matrices);
    }
};

template <class T>
void launch_factors(int& status, const T* in, T* out, int64_t rows, int matrices, cudaStream_t stream) {
    if (rows > 0) {
        EQC_LAUNCH_CHECKED(status, (factors<T>), dim3(unsigned(ceil_div(rows, kWarps))), dim3(kThreads), 0, stream, in,
                           out, rows, matrices);
    }
}

template <class T>
void make_vertices(int& status, const Arguments& p, const Vertices<T>& out, cudaStream_t stream) {
    const int channels = int(p.channels);
    const int matrices = int(p.matrices);
    const Centring<T> centre{typed<T>(p.x), p.cols, channels, matrices, typed<T>(p.u), typed<T>(p.v), typed<T>(p.c),
                             out.mean,      out.shift};
    EQC_LAUNCH_CHECKED(status, (centring<T>), dim3(1), dim3(1024), 0, stream, centre);
    const unsigned down = unsigned(ceil_div(matrices, kLogitMatrices));
    const LogitPart<T> a{typed<T>(p.u), out.shift, out.a, out.a_exp, p.rows};
    const LogitPart<T> s{typed<T>(p.v), nullptr, out.s, out.s_exp, p.cols};
    const auto blocks = [](int64_t rows) { return unsigned(ceil_div(rows, kLogitRows)); };
    if (p.centre == p.x) {
        const Logits<T> both{typed<T>(p.x), out.mean, channels, matrices, in_vectors<T>(p.x, channels), {a, s}};
        if (p.cols > 0) {
            EQC_LAUNCH_CHECKED(status, (logits<T, 2>), dim3(blocks(p.cols), down), dim3(kThreads), 0, stream, both);
        }
    } else {
        const Logits<T> rows{typed<T>(p.centre), out.mean, channels, matrices, in_vectors<T>(p.centre, channels), {a}};
        const Logits<T> cols{typed<T>(p.x), out.mean, channels, matrices, in_vectors<T>(p.x, channels), {s}};
        if (p.rows > 0) {
            EQC_LAUNCH_CHECKED(status, (logits<T, 1>), dim3(blocks(p.rows), down), dim3(kThreads), 0, stream, rows);
        }
        if (p.cols > 0) {
            EQC_LAUNCH_CHECKED(status, (logits<T, 1>), dim3(blocks(p.cols), down), dim3(kThreads), 0, stream, cols);
        }
    }
    if (out.a_exp != nullptr && matrices > kLogitMatrices) {
        launch_factors<T>(status, out.a, out.a_exp, p.rows, matrices, stream);
        launch_factors<T>(status, out.s, out.s_exp, p.cols, matrices, stream);
    }
}

template <class T>
Steering<T> by_rows(const Arguments& p, const Vertices<T>& at) {
    return {at.a,    at.a_exp, at.s,           at.s_exp,           p.rowptr, p.col,
            nullptr, p.edge_of_slot, typed<T>(p.values), p.rows, p.cols, int(p.matrices)};
}

template <class T>
Steering<T> by_columns(const Arguments& p, const Vertices<T>& at) {
    return {at.s, at.s_exp, at.a, at.a_exp, p.colptr, p.row_of_position, p.slot_of_position, p.edge_of_slot,
            typed<T>(p.values), p.cols, p.rows, int(p.matrices)};
}

template <class T>
void launch_fused(int& status, const Fused<T>& p, cudaStream_t stream) {
    const unsigned tiles = unsigned(ceil_div(p.steering.rows, kRows));
    const size_t shared = Shape<T>::kSharedBytes;
    if (tiles == 0) {
        return;
    }
    if (p.outputs <= 32) {
        EQC_LAUNCH_CHECKED(status, (fused<T, 32>), dim3(tiles), dim3(kThreads), shared, stream, p);
    } else if (p.outputs <= 64) {
        EQC_LAUNCH_CHECKED(status, (fused<T, 64>), dim3(tiles), dim3(kThreads), shared, stream, p);
    } else {
        EQC_LAUNCH_CHECKED(status, (fused<T, 128>), dim3(tiles, unsigned(ceil_div(p.outputs, 128))), dim3(kThreads),
                           shared, stream, p);
    }
}

template <class T>
void launch_transformed(int& status, const Arguments& p, const Steering<T>& steering, T* h, cudaStream_t stream) {
    const int outputs = int(p.outputs);
    const int64_t columns = p.matrices * p.outputs;
    const Transformed<T> product{typed<T>(p.x),
                                 typed<T>(p.w),
                                 h,
                                 p.cols,
                                 int(p.channels),
                                 outputs,
                                 int(p.matrices),
                                 in_vectors<T>(p.x, p.channels),
                                 in_vectors<T>(p.w, p.outputs)};
    const unsigned tiles = unsigned(ceil_div(p.cols, kRows));
    if (tiles > 0 && columns <= 32) {
        EQC_LAUNCH_CHECKED(status, (transform<T, 32>), dim3(tiles), dim3(kThreads), Shape<T>::kSharedBytes, stream,
                           product);
    } else if (tiles > 0) {
        EQC_LAUNCH_CHECKED(status, (transform<T, 64>), dim3(tiles, unsigned(ceil_div(columns, 64))), dim3(kThreads),
                           Shape<T>::kSharedBytes, stream, product);
    }
    const GatherTransformed<T> rest{
        steering, h, typed<T>(p.b), static_cast<T*>(p.y), p.cols, outputs, (p.flags & EQC_FS_RELU) != 0};
    EQC_LAUNCH_CHECKED(status, (gather_outputs<T>),
                       dim3(unsigned(ceil_div(p.rows, kWarps)), unsigned(ceil_div(outputs, kPanel))), dim3(kThreads), 0,
                       stream, rest);
}

template <class T>
struct ForwardSpace {
    Vertices<T> vertices;
    T* h;  // [cols, M, D], order first only
    size_t bytes;

    ForwardSpace(const Arguments& p, eqc::Space space)
        : vertices(p, space),
          h((p.flags & EQC_FS_FIRST) != 0 ? space.take<T>(p.cols * p.matrices * p.outputs) : nullptr),
          bytes(space.used()) {}
};

template <class T>
size_t forward_workspace(const Arguments* p) {
    return p == nullptr || check(*p) != EQC_OK ? 0 : ForwardSpace<T>(*p, eqc::Space(nullptr)).bytes;
}

template <class T>
int forward(const Arguments* arguments, void* workspace, void* stream_pointer) {
    if (arguments == nullptr) {
        return EQC_BAD_ARGUMENT;
    }
    const Arguments& p = *arguments;
    int status = check(p);
    if (status != EQC_OK) {
        return status;
    }
    if (workspace == nullptr || p.b == nullptr || (p.rows > 0 && p.y == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    if (p.rows == 0) {
        return EQC_OK;
    }
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
    const ForwardSpace<T> space(p, eqc::Space(workspace));
    make_vertices(status, p, space.vertices, stream);
    const Steering<T> steering = by_rows(p, space.vertices);
    if (space.h != nullptr || (p.flags & EQC_FS_FIRST) != 0) {
        launch_transformed(status, p, steering, space.h, stream);
    } else {
        launch_fused(status,
                     Fused<T>{steering, typed<T>(p.x), typed<T>(p.w), typed<T>(p.b), static_cast<T*>(p.y),
                              int(p.channels), int(p.outputs), in_vectors<T>(p.w, p.outputs),
                              in_vectors<T>(p.y, p.outputs), (p.flags & EQC_FS_RELU) != 0},
                     stream);
    }
    return status;
}

/* What a backward call computes on the way to the gradients that are wanted, and where. */
template <class T>
struct BackwardSpace {
    bool relu;
    bool deterministic;
    bool same;        // centre is x
    bool edges;       // the row pass
    bool da;
    bool ds;
    bool sums;        // the reductions to du, dv and dc
    bool whole;       // one chunk
    int weight_columns;
    int64_t weight_slices;
    int64_t cotangent_slices;
    int64_t logit_slices;

    eqc::Space space;
    Vertices<T> vertices;
    T* masked = nullptr;
    double* db_parts = nullptr;
    T* dw_parts = nullptr;
    T* wt = nullptr;
    T* da_rows = nullptr;
    T* ds_cols = nullptr;
    T* dlogits = nullptr;
    T* means = nullptr;
    T* tops = nullptr;
    T* du_parts = nullptr;
    T* dv_parts = nullptr;
    double* dc_parts = nullptr;
    double* dc_sum = nullptr;

    BackwardSpace(const Arguments& p, void* base) : space(base), vertices(p, space) {
        relu = (p.flags & EQC_FS_RELU) != 0;
        deterministic = (p.flags & EQC_FS_DETERMINISTIC) != 0;
        same = p.centre == p.x;
        sums = p.du != nullptr || p.dv != nullptr || p.dc != nullptr;
        da = sums || p.dcentre != nullptr || (p.dx != nullptr && same);
        ds = p.dv != nullptr || p.dx != nullptr;
        edges = da || ds || p.dvalues != nullptr;
        whole = p.matrices <= Shape<T>::kMatrices && p.channels <= kLane;
        const int64_t tiles = ceil_div(p.rows, kRows);
        const int64_t chunks = ceil_div(p.matrices, Shape<T>::kMatrices) * ceil_div(p.channels, kLane);
        weight_columns = sizeof(T) == 4 && p.outputs > 32 ? 64 : 32;
        weight_slices = clamp(ceil_div(kBusy, chunks * ceil_div(p.outputs, weight_columns)), 1, tiles < 1 ? 1 : tiles);
        cotangent_slices = clamp(tiles, 1, kBusy);
        const int64_t longest = p.rows > p.cols ? p.rows : p.cols;
        logit_slices = clamp(ceil_div(longest, kRows), 1, kBusy);

        if (relu) {
            masked = space.take<T>(p.rows * p.outputs);
        }
        if (p.db != nullptr) {
            db_parts = space.take<double>(cotangent_slices * p.outputs);
        }
        const int64_t weights = p.matrices * p.channels * p.outputs;
        if (p.dw != nullptr) {
            dw_parts = space.take<T>(weight_slices * weights);
        }
        if (!edges) {
            return;
        }
        wt = space.take<T>(weights);
        da_rows = da ? space.take<T>(p.rows * p.matrices) : nullptr;
        ds_cols = ds ? space.take<T>(p.cols * p.matrices) : nullptr;
        if (!whole || (ds && deterministic)) {
            dlogits = space.take<T>(p.edges * p.matrices);
        }
        if (!whole) {
            means = space.take<T>(p.edges);
            tops = space.take<T>(p.edges);
        }
        if (sums) {
            du_parts = space.take<T>(logit_slices * p.channels * p.matrices);
            dv_parts = p.dv != nullptr ? space.take<T>(logit_slices * p.channels * p.matrices) : nullptr;
            dc_parts = space.take<double>(logit_slices * p.matrices);
            dc_sum = space.take<double>(p.matrices);
        }
    }
};

template <class T>
size_t backward_workspace(const Arguments* p) {
    return p == nullptr || check(*p) != EQC_OK ? 0 : BackwardSpace<T>(*p, nullptr).space.used();
}

template <class T>
void launch_clear(int& status, T* out, int64_t count, cudaStream_t stream) {
    if (count > 0) {
        EQC_LAUNCH_CHECKED(status, (clear<T>), dim3(unsigned(clamp(ceil_div(count, 4 * kThreads), 1, 4 * kBusy))),
                           dim3(kThreads), 0, stream, out, count);
    }
}

template <class T, int kColumns>
void launch_weight_gradient(int& status, const WeightGradient<T>& p, unsigned slices, unsigned chunks,
                            cudaStream_t stream) {
    EQC_LAUNCH_CHECKED(status, (weight_gradient<T, kColumns>),
                       dim3(slices, chunks, unsigned(ceil_div(p.outputs, kColumns))), dim3(kThreads),
                       (WeightShape<T, kColumns>::kSharedBytes), stream, p);
}

template <class T>
void weights_backward(int& status, const Arguments& p, const BackwardSpace<T>& space, const T* g,
                      cudaStream_t stream) {
    const int64_t across = ceil_div(p.channels, kLane);
    const unsigned chunks = unsigned(ceil_div(p.matrices, Shape<T>::kMatrices) * across);
    const WeightGradient<T> product{by_rows(p, space.vertices), typed<T>(p.x),   g,
                                    space.dw_parts,             int(p.channels), int(p.outputs),
                                    int(across),                in_vectors<T>(g, p.outputs)};
    if constexpr (sizeof(T) == 4) {
        if (space.weight_columns == 64) {
            launch_weight_gradient<T, 64>(status, product, unsigned(space.weight_slices), chunks, stream);
        }
    }
    if (space.weight_columns == 32) {
        launch_weight_gradient<T, 32>(status, product, unsigned(space.weight_slices), chunks, stream);
    }
    eqc::launch_reduce<T, T>(status, space.dw_parts,
                             {p.matrices * p.channels * p.outputs, int(space.weight_slices), static_cast<T*>(p.dw)},
                             stream);
}

template <class T>
void launch_row_gradient(int& status, const RowGradient<T>& p, cudaStream_t stream) {
    const unsigned tiles = unsigned(ceil_div(p.steering.rows, kRows));
    const size_t shared = Shape<T>::kSharedBytes;
    const int matrices = p.steering.matrices < Shape<T>::kMatrices ? p.steering.matrices : Shape<T>::kMatrices;
    const int columns = matrices * chunk_stride(p.channels);
    if (tiles == 0) {
        return;
    }
    if (columns <= Shape<T>::kChunk / 4) {
        EQC_LAUNCH_CHECKED(status, (row_gradient<T, Shape<T>::kChunk / 4>), dim3(tiles), dim3(kThreads), shared, stream,
                           p);
    } else if (columns <= Shape<T>::kChunk / 2) {
        EQC_LAUNCH_CHECKED(status, (row_gradient<T, Shape<T>::kChunk / 2>), dim3(tiles), dim3(kThreads), shared, stream,
                           p);
    } else {
        EQC_LAUNCH_CHECKED(status, (row_gradient<T, Shape<T>::kChunk>), dim3(tiles), dim3(kThreads), shared, stream, p);
    }
}

/* Everything that goes through the edges: dx, dcentre, dvalues, du, dv and dc. */
template <class T>
void edges_backward(int& status, const Arguments& p, const BackwardSpace<T>& space, const T* g, cudaStream_t stream) {
    const int channels = int(p.channels);
    const int outputs = int(p.outputs);
    const int matrices = int(p.matrices);
    T* const dx = static_cast<T*>(p.dx);
    T* const dvalues = static_cast<T*>(p.dvalues);
    eqc::launch_transpose(status, typed<T>(p.w), space.wt, matrices, channels, outputs, stream);
    if (dvalues != nullptr && p.given_edges > p.edges) {
        launch_clear(status, dvalues, p.given_edges, stream);
    }
    if (!space.deterministic) {
        launch_clear(status, dx, dx == nullptr ? 0 : p.cols * p.channels, stream);
        launch_clear(status, space.ds_cols, space.ds ? p.cols * p.matrices : 0, stream);
    }
    RowGradient<T> pass{};
    pass.steering = by_rows(p, space.vertices);
    pass.x = typed<T>(p.x);
    pass.g = g;
    pass.wt = space.wt;
    pass.dx = space.deterministic ? nullptr : dx;
    pass.ds = space.deterministic ? nullptr : space.ds_cols;
    pass.da = space.da_rows;
    pass.dvalues = dvalues;
    pass.dlogits = space.dlogits;
    pass.means = space.means;
    pass.tops = space.tops;
    pass.cols = p.cols;
    pass.edges = p.edges;
    pass.given_edges = p.given_edges;
    pass.channels = channels;
    pass.outputs = outputs;
    pass.keep = space.deterministic && space.ds;
    pass.vectors_x = in_vectors<T>(p.x, channels);
    pass.vectors_g = in_vectors<T>(g, outputs);
    pass.vectors_wt = in_vectors<T>(space.wt, channels);
    pass.vectors_dx = in_vectors<T>(dx, channels);
    launch_row_gradient(status, pass, stream);

    if (space.deterministic && dx != nullptr) {
        launch_fused(status,
                     Fused<T>{by_columns(p, space.vertices), g, space.wt, nullptr, dx, outputs, channels,
                              in_vectors<T>(space.wt, channels), in_vectors<T>(dx, channels), false},
                     stream);
    }
    if (space.deterministic && space.ds && p.cols > 0) {
        const ColumnLogits<T> columns{space.dlogits, space.ds_cols, p.colptr, p.slot_of_position, p.cols, p.edges,
                                      matrices};
        EQC_LAUNCH_CHECKED(status, (column_logits<T>),
                           dim3(unsigned(ceil_div(p.cols, kWarps)), unsigned(ceil_div(matrices, 8))), dim3(kThreads), 0,
                           stream, columns);
    }
    if (space.sums) {
        const int64_t across = ceil_div(channels, 32);
        const int64_t longest = p.rows > p.cols ? p.rows : p.cols;
        const LogitGradient<T> parts{typed<T>(p.centre),
                                     typed<T>(p.x),
                                     space.vertices.mean,
                                     space.da_rows,
                                     p.dv != nullptr ? space.ds_cols : nullptr,
                                     space.du_parts,
                                     space.dv_parts,
                                     space.dc_parts,
                                     p.rows,
                                     p.cols,
                                     ceil_div(longest, space.logit_slices),
                                     channels,
                                     matrices,
                                     int(across),
                                     in_vectors<T>(p.centre, channels),
                                     in_vectors<T>(p.x, channels)};
        EQC_LAUNCH_CHECKED(status, (logit_gradient<T>),
                           dim3(unsigned(space.logit_slices), unsigned(across * ceil_div(matrices, 8))), dim3(kThreads),
                           0, stream, parts);
        const int slices = int(space.logit_slices);
        const int64_t size = p.channels * p.matrices;
        eqc::launch_reduce<double, T>(status, space.dc_parts,
                                      {p.matrices, slices, static_cast<T*>(p.dc), space.dc_sum}, stream);
        /* The sum of ds over the sources is the sum of da over the centres: both are all edges' dl. */
        if (p.du != nullptr) {
            eqc::launch_reduce<T, T>(status, space.du_parts,
                                     {size, slices, static_cast<T*>(p.du), nullptr, space.vertices.mean,
                                      space.dc_sum, matrices},
                                     stream);
        }
        if (p.dv != nullptr) {
            eqc::launch_reduce<T, T>(status, space.dv_parts,
                                     {size, slices, static_cast<T*>(p.dv), nullptr, space.vertices.mean,
                                      space.dc_sum, matrices},
                                     stream);
        }
    }
    const auto through_logits = [&](T* out, int64_t rows, bool centres, bool sources) {
        const FeatureGradient<T> part{{centres ? space.da_rows : nullptr, sources ? space.ds_cols : nullptr},
                                      {typed<T>(p.u), typed<T>(p.v)},
                                      {p.rows, p.cols},
                                      out,
                                      rows,
                                      channels,
                                      matrices,
                                      sources,
                                      matrices % Shape<T>::kWidth == 0};
        if (out != nullptr && rows > 0) {
            EQC_LAUNCH_CHECKED(status, (feature_gradient<T>),
                               dim3(unsigned(ceil_div(rows, kFeatureRows)), unsigned(ceil_div(channels, 32))),
                               dim3(kThreads), 0, stream, part);
        }
    };
    through_logits(dx, p.cols, space.same, true);
    through_logits(static_cast<T*>(p.dcentre), p.rows, true, false);
}

template <class T>
int backward(const Arguments* arguments, void* workspace, void* stream_pointer) {
    if (arguments == nullptr) {
        return EQC_BAD_ARGUMENT;
    }
    const Arguments& p = *arguments;
    int status = check(p);
    if (status != EQC_OK) {
        return status;
    }
    const BackwardSpace<T> space(p, workspace);
    if (workspace == nullptr || (p.rows > 0 && p.dy == nullptr) || (p.rows > 0 && space.relu && p.y == nullptr) ||
        (space.same && p.dcentre != nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    if (space.deterministic && space.ds &&
        (p.colptr == nullptr || (p.edges > 0 && (p.row_of_position == nullptr || p.slot_of_position == nullptr)))) {
        return EQC_BAD_ARGUMENT;
    }
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
    if (p.dw != nullptr || space.edges) {
        make_vertices(status, p, space.vertices, stream);
    }
    if (space.relu || p.db != nullptr) {
        const Cotangent<T> parts{typed<T>(p.dy),
                                 space.relu ? typed<T>(p.y) : nullptr,
                                 space.masked,
                                 space.db_parts,
                                 p.rows,
                                 ceil_div(p.rows, space.cotangent_slices),
                                 int(p.outputs)};
        EQC_LAUNCH_CHECKED(status, (cotangent<T>),
                           dim3(unsigned(space.cotangent_slices), unsigned(ceil_div(p.outputs, 32))), dim3(kThreads), 0,
                           stream, parts);
    }
    if (p.db != nullptr) {
        eqc::launch_reduce<double, T>(status, space.db_parts,
                                      {p.outputs, int(space.cotangent_slices), static_cast<T*>(p.db)}, stream);
    }
    const T* g = space.relu ? space.masked : typed<T>(p.dy);
    if (p.dw != nullptr) {
        weights_backward(status, p, space, g, stream);
    }
    if (space.edges) {
        edges_backward(status, p, space, g, stream);
    }
    return status;
}

}  // namespace

#define EQC_DEFINE(name, suffix, T)                                                                         \
    EQC_API size_t eqc_feature_steered_##name##_##suffix##_workspace(const eqc_feature_steered* arguments) { \
        return name##_workspace<T>(arguments);                                                              \
    }                                                                                                       \
    EQC_API int eqc_feature_steered_##name##_##suffix(const eqc_feature_steered* arguments, void* workspace, \
                                                      void* stream) {                                       \
        return name<T>(arguments, workspace, stream);                                                       \
    }

EQC_DEFINE(forward, f32, float)
EQC_DEFINE(forward, f64, double)
EQC_DEFINE(backward, f32, float)
EQC_DEFINE(backward, f64, double)
