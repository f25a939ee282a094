/* dw[tap, c] = sum over entries of x[neighbour(entry, tap), c] cotangent[entry]: a block has 64 rows (tap, c) of dw,
 * up to 64 columns, and every gridDim.z-th slab of the entries, so that its share does not depend on where the list
 * ends; the parts are added by a second launch. Slabs and sums are those of product.cuh with entries as the summed
 * index. */
#ifndef EQC_BLOCK_SPARSE_WEIGHT_GRADIENT_CUH
#define EQC_BLOCK_SPARSE_WEIGHT_GRADIENT_CUH

#include "neighbours.cuh"
#include "product.cuh"

namespace eqc {

template <class T>
struct WeightGradient {
    Neighbours neighbours;  // of the entries among the rows of x
    const T* x;
    const T* g;              // cotangents, [., K]
    const int32_t* g_row;    // of an entry; NULL: the entry
    T* partial;              // [gridDim.z, taps, C, K]
    const int32_t* count;
    int64_t sites;
    int channels;
    int taps;
    int filters;
    bool vectors_x;
    bool vectors_g;
};

/* found[tap - tap0, entry of the slab] names the row of x. */
template <class T, int kColumns, int kStep>
__device__ __forceinline__ void start_features(eqc_shared_ptr<T> slab, const WeightGradient<T>& p, int m0, int tap0,
                                               eqc_shared_ptr<int32_t> found) {
    using S = Tile<T, kColumns>;
    constexpr int kLine = S::kRows / kStep;
    static_assert(S::kThreads % kLine == 0, "one row of dw a thread");
    const int m = int(threadIdx.x) % kLine * kStep;
    const int tap = (m0 + m) / p.channels;
    const int c = m0 + m - tap * p.channels;
#pragma unroll 1
    for (int k = int(threadIdx.x) / kLine; k < S::kDepth; k += S::kThreads / kLine) {
        const int32_t row = tap < p.taps ? int32_t(found[(tap - tap0) * S::kDepth + k]) : -1;
        copy_ahead<kStep, T>(slab + k * S::kRows + m, p.x + (row < 0 ? 0 : int64_t(row) * p.channels + c), row >= 0);
    }
}

template <class T, int kColumns, int kStep>
__device__ __forceinline__ void start_cotangents(eqc_shared_ptr<T> slab, const WeightGradient<T>& p, int64_t entry0,
                                                 int64_t end, int n0) {
    using S = Tile<T, kColumns>;
    constexpr int kLine = kColumns / kStep;
#pragma unroll 1
    for (int piece = int(threadIdx.x); piece < S::kDepth * kLine; piece += S::kThreads) {
        const int64_t entry = entry0 + piece / kLine;
        const int n = n0 + piece % kLine * kStep;
        const bool real = entry < end && n < p.filters;
        const int64_t row = !real ? 0 : p.g_row == nullptr ? entry : int64_t(p.g_row[entry]);
        copy_ahead<kStep, T>(slab + piece * kStep, p.g + (real ? row * p.filters + n : 0), real);
    }
}

/* sums[v * kWidth + i] is row v * 8 * kWidth + row * kWidth + i of the tile. */
template <class T, int kColumns>
__device__ __forceinline__ void multiply_entries(Sums<T>& sums, const Tile<T, kColumns>& own, eqc_shared_ptr<T> left,
                                                 eqc_shared_ptr<T> right) {
    using S = Tile<T, kColumns>;
    constexpr int kWidth = S::kWidth;
#pragma unroll 2
    for (int k = own.team * S::kShare; k < (own.team + 1) * S::kShare; ++k) {
        T across[4];
        load_columns<T, kColumns>(own, right + k * kColumns, across);
#pragma unroll
        for (int v = 0; v < 8 / kWidth; ++v) {
            T down[kWidth];
            load16(left + k * S::kRows + (v * 8 + own.row) * kWidth, down);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    sums[v * kWidth + i][n] += down[i] * across[n];
                }
            }
        }
    }
}

template <class T, int kColumns>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks)
    weight_gradient(WeightGradient<T> p) {
    using S = Tile<T, kColumns>;
    constexpr int kWidth = S::kWidth;
    EQC_SHARED_ARRAY(int32_t, found, S::kDepth * S::kRows);  // 64 rows of dw have at most 64 taps
    const int64_t end = entries(p.count, p.sites);
    const int m0 = int(blockIdx.x) * S::kRows;
    const int n0 = int(blockIdx.y) * kColumns;
    const int depth = p.taps * p.channels;
    const int tap0 = m0 / p.channels;
    const int taps = ((m0 + S::kRows < depth ? m0 + S::kRows : depth) - 1) / p.channels + 1 - tap0;
    const int64_t step = int64_t(gridDim.z) * S::kDepth;

    /* The first slab from `entry` on in which some entry has a neighbour, its neighbours in `found`. */
    const auto next = [&](int64_t entry) {
        for (; entry < end; entry += step) {
            const int k = int(threadIdx.x) % S::kDepth;
            const auto from = p.neighbours.seeker(entry + k, entry + k < end);
            bool any = false;
            for (int t = int(threadIdx.x) / S::kDepth; t < taps; t += S::kThreads / S::kDepth) {
                const int32_t row = p.neighbours.find(from, tap0 + t);
                found[t * S::kDepth + k] = row;
                any = any || row >= 0;
            }
            if (__syncthreads_or(any)) {
                break;
            }
        }
        return entry;
    };
    const auto start = [&](int64_t entry, int which) {
        if (p.vectors_x) {
            start_features<T, kColumns, kWidth>(S::left(which), p, m0, tap0, found);
        } else {
            start_features<T, kColumns, 1>(S::left(which), p, m0, tap0, found);
        }
        if (p.vectors_g) {
            start_cotangents<T, kColumns, kWidth>(S::right(which), p, entry, end, n0);
        } else {
            start_cotangents<T, kColumns, 1>(S::right(which), p, entry, end, n0);
        }
    };

    const S own;
    Sums<T> sums;
    clear<T>(sums);
    int64_t entry = next(int64_t(blockIdx.z) * S::kDepth);
    if (entry < end) {
        start(entry, 0);
    }
    for (int which = 0; entry < end; which ^= 1) {
        copies_arrive();
        __syncthreads();
        const int64_t following = next(entry + step);
        if (following < end) {
            start(following, which ^ 1);
        }
        multiply_entries<T, kColumns>(sums, own, S::left(which), S::right(which));
        entry = following;
    }
    __syncthreads();
    deposit<T, kColumns>(sums, own, [&](int r) { return r / kWidth * 8 * kWidth + own.row * kWidth + r % kWidth; });
    const auto partial = eqc_view(p.partial, int64_t(gridDim.z) * depth * p.filters);
    deposited<T, kColumns>(true, [&](int row, int column, T(&values)[4]) {
        if (m0 + row < depth && n0 + column < p.filters) {
            store<T, 4>(partial + ((int64_t(blockIdx.z) * depth + m0 + row) * p.filters + n0 + column),
                        p.filters % kWidth == 0, p.filters - n0 - column, values);
        }
    });
}

/* Into how many parts the entries are split. */
inline int64_t weight_slices(int64_t sites, int64_t depth, int64_t filters) {
    constexpr int64_t kBusy = 528;  // blocks: four on each of 132 multiprocessors
    constexpr int64_t kLeast = 128;  // entries of a part
    const int64_t tiles = ceil_div(depth, 64) * ceil_div(filters, 64);
    const int64_t wanted = ceil_div(kBusy, tiles);
    const int64_t useful = ceil_div(sites, kLeast);
    return wanted < useful ? wanted : useful < 1 ? 1 : useful;
}

template <class T>
void launch_weight_gradient(int& status, const WeightGradient<T>& p, int64_t slices, cudaStream_t stream) {
    with_tile(p.filters, [&](auto columns) {
        using S = Tile<T, columns()>;
        const dim3 grid(unsigned(ceil_div(int64_t(p.taps) * p.channels, S::kRows)),
                        unsigned(ceil_div(p.filters, columns())), unsigned(slices));
        EQC_LAUNCH_CHECKED(status, (weight_gradient<T, columns()>), grid, dim3(S::kThreads), S::kSharedBytes, stream,
                           p);
    });
}

}  // namespace eqc

#endif
