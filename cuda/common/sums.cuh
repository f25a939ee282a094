/* The second stage of sums whose first one blocks made slice by slice: in a fixed order, so that the bits repeat. */
#ifndef EQC_SUMS_CUH
#define EQC_SUMS_CUH

#include "device.cuh"

namespace eqc {

constexpr int kReduceThreads = 256;

template <class T>
struct Reduction {
    int64_t count;
    int slices;
    T* out;                      // [count] or NULL
    double* out_wide = nullptr;  // [count] or NULL
    /* Adds mean[k / matrices] * total[k % matrices], what an offset of mean took away; NULL: nothing. */
    const T* mean = nullptr;
    const double* total = nullptr;
    int matrices = 1;
};

/* out[k] = sum over the slices of partial[slice, k], in double and in a fixed order: 32 entries a block, eight strands
 * each. */
template <class Partial, class T>
__global__ void __launch_bounds__(kReduceThreads) reduce(const Partial* partial_pointer, Reduction<T> p) {
    constexpr int kStrands = kReduceThreads / 32;
    const auto partial = eqc_view(partial_pointer, p.slices * p.count);
    const auto mean = eqc_view(p.mean, p.mean == nullptr ? 0 : p.count / p.matrices);
    const auto carried = eqc_view(p.total, p.mean == nullptr ? 0 : p.matrices);
    EQC_SHARED_ARRAY(double, sums, kReduceThreads);
    const int lane = int(threadIdx.x) % 32;
    const int own_strand = int(threadIdx.x) / 32;
    const int64_t k = int64_t(blockIdx.x) * 32 + lane;
    double sum = 0;
    if (k < p.count) {
#pragma unroll 8
        for (int slice = own_strand; slice < p.slices; slice += kStrands) {
            sum += double(partial[slice * p.count + k]);
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (own_strand == 0 && k < p.count) {
        double total = 0;
        for (int strand = 0; strand < kStrands; ++strand) {
            total += sums[strand * 32 + lane];
        }
        if (p.mean != nullptr) {
            total += double(mean[k / p.matrices]) * carried[k % p.matrices];
        }
        if (p.out != nullptr) {
            auto out = eqc_view(p.out, p.count);
            out[k] = T(total);
        }
        if (p.out_wide != nullptr) {
            auto out_wide = eqc_view(p.out_wide, p.count);
            out_wide[k] = total;
        }
    }
}

template <class Partial, class T>
void launch_reduce(int& status, const Partial* partial, const Reduction<T>& reduction, cudaStream_t stream) {
    EQC_LAUNCH_CHECKED(status, (reduce<Partial, T>), dim3(unsigned(ceil_div(reduction.count, 32))),
                       dim3(kReduceThreads), 0, stream, partial, reduction);
}

}  // namespace eqc

#endif
