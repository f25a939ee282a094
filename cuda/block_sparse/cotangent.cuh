/* What a backward pass prepares from the listed rows of dy, in one launch: the cotangent behind the ReLU, row by row
 * of the list; partial sums of it over the list; and for each input who reads it. */
#ifndef EQC_BLOCK_SPARSE_COTANGENT_CUH
#define EQC_BLOCK_SPARSE_COTANGENT_CUH

#include "neighbours.cuh"

namespace eqc {

template <class T>
struct Cotangent {
    const T* dy;      // [out_rows, K]
    const T* y;       // [out_rows, K]; NULL without ReLU
    T* masked;        // [sites, K] dy of an entry where y > 0, else 0; NULL without ReLU
    double* partial;  // [gridDim.x, K] or NULL
    const int32_t* site;  // NULL: entry i is row i
    const int32_t* count;
    int64_t sites;
    int filters;
    /* reader[p] = cotangent of the entry at position p, or with a table reader[row, tap] = that of the entry that reads
     * the row at the tap; what has none is left as it is. NULL: not wanted. */
    int32_t* reader;
    int64_t reader_size;
    const int32_t* table;
    int taps;

    /* The row of the cotangents, masked or not, that belongs to an entry. */
    __device__ __forceinline__ int64_t row_of(int64_t entry) const {
        return masked != nullptr || site == nullptr ? entry : int64_t(site[entry]);
    }
};

constexpr int kCotangentThreads = 256;

template <class T>
__global__ void __launch_bounds__(kCotangentThreads) cotangent(Cotangent<T> p) {
    constexpr int kWarps = kCotangentThreads / 32;
    EQC_SHARED_ARRAY(double, sums, kCotangentThreads);
    const int lane = int(threadIdx.x) % 32;
    const int warp = int(threadIdx.x) / 32;
    const int n = int(blockIdx.y) * 32 + lane;
    const int64_t count = entries(p.count, p.sites);
    if (p.reader != nullptr && blockIdx.y == 0) {
        const auto reader = eqc_view(p.reader, p.reader_size);
        const int64_t readings = p.table == nullptr ? count : count * p.taps;
        for (int64_t k = int64_t(blockIdx.x) * kCotangentThreads + threadIdx.x; k < readings;
             k += int64_t(gridDim.x) * kCotangentThreads) {
            if (p.table == nullptr) {
                reader[p.site[k]] = int32_t(p.row_of(k));
            } else if (p.table[k] >= 0) {
                reader[int64_t(p.table[k]) * p.taps + k % p.taps] = int32_t(p.row_of(k / p.taps));
            }
        }
    }
    if (p.masked == nullptr && p.partial == nullptr) {
        return;
    }
    const auto masked = eqc_view(p.masked, p.masked == nullptr ? 0 : p.sites * p.filters);
    double sum = 0;
    if (n < p.filters) {
#pragma unroll 2
        for (int64_t entry = int64_t(blockIdx.x) * kWarps + warp; entry < count; entry += int64_t(gridDim.x) * kWarps) {
            const int64_t at = (p.site == nullptr ? entry : int64_t(p.site[entry])) * p.filters + n;
            T value = p.dy[at];
            if (p.y != nullptr) {
                value = p.y[at] > T(0) ? value : T(0);
                masked[entry * p.filters + n] = value;
            }
            sum += double(value);
        }
    }
    if (p.partial == nullptr) {
        return;
    }
    const auto partial = eqc_view(p.partial, int64_t(gridDim.x) * p.filters);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && n < p.filters) {
        double total = 0;
        for (int k = 0; k < kWarps; ++k) {
            total += sums[k * 32 + lane];
        }
        partial[int64_t(blockIdx.x) * p.filters + n] = total;
    }
}

}  // namespace eqc

#endif
