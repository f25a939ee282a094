/* Transposes of a stack of matrices. */
#ifndef EQC_TRANSPOSE_CUH
#define EQC_TRANSPOSE_CUH

#include "device.cuh"

namespace eqc {

constexpr int kTransposeThreads = 256;

/* out[m, d, c] = in[m, c, d]; the grid's z is m. */
template <class T>
__global__ void __launch_bounds__(kTransposeThreads) transpose(const T* in, T* out_pointer, int matrices, int channels,
                                                               int outputs) {
    constexpr int kWarps = kTransposeThreads / 32;
    EQC_SHARED_ARRAY(T, square, 32 * 33);
    const int lane = int(threadIdx.x) % 32;
    const int warp = int(threadIdx.x) / 32;
    const int64_t size = int64_t(channels) * outputs;
    auto out = eqc_view(out_pointer, matrices * size);
    const int c0 = int(blockIdx.x) * 32;
    const int d0 = int(blockIdx.y) * 32;
    const int64_t first = blockIdx.z * size;
    for (int k = warp; k < 32; k += kWarps) {
        if (c0 + k < channels && d0 + lane < outputs) {
            square[k * 33 + lane] = in[first + int64_t(c0 + k) * outputs + d0 + lane];
        }
    }
    __syncthreads();
    for (int k = warp; k < 32; k += kWarps) {
        if (d0 + k < outputs && c0 + lane < channels) {
            out[first + int64_t(d0 + k) * channels + c0 + lane] = square[lane * 33 + k];
        }
    }
}

template <class T>
void launch_transpose(int& status, const T* in, T* out, int matrices, int channels, int outputs, cudaStream_t stream) {
    const dim3 grid(unsigned(ceil_div(channels, 32)), unsigned(ceil_div(outputs, 32)), unsigned(matrices));
    EQC_LAUNCH_CHECKED(status, (transpose<T>), grid, dim3(kTransposeThreads), 0, stream, in, out, matrices, channels,
                       outputs);
}

}  // namespace eqc

#endif
