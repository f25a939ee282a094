/* Kernels that use one thing each of what device code can use, for comparison with NumPy. */
#include <cuda_runtime.h>

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <class T>
__global__ void __launch_bounds__(256) block_sum(const T* in, T* out_pointer, int64_t n) {
    EQC_SHARED_ARRAY(T, sums, 256);
    auto out = eqc_view(out_pointer, gridDim.x);
    T sum = 0;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
        sum += __ldg(in + i);
    }
    sums[threadIdx.x] = sum;
    for (int half = int(blockDim.x) / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        out[blockIdx.x] = sums[0];
    }
}

/* out [4, threads]: one shuffle of each kind. */
template <class T>
__global__ void shuffles(const T* in, T* out, int width, int parameter) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    out[t] = __shfl_sync(0xffffffffu, in[t], parameter, width);
    out[n + t] = __shfl_up_sync(0xffffffffu, in[t], unsigned(parameter), width);
    out[2 * n + t] = __shfl_down_sync(0xffffffffu, in[t], unsigned(parameter), width);
    out[3 * n + t] = __shfl_xor_sync(0xffffffffu, in[t], parameter, width);
}

/* Lanes below `split` and the others vote apart; out [3, threads]. */
__global__ void votes(const int* predicate, unsigned* out, int split) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    const unsigned below = (1u << split) - 1u;
    if (t % warpSize < split) {
        out[t] = __ballot_sync(below, predicate[t]);
        out[n + t] = unsigned(__any_sync(below, predicate[t]));
        out[2 * n + t] = unsigned(__all_sync(below, predicate[t]));
    } else {
        out[t] = __ballot_sync(~below, predicate[t]);
        out[n + t] = unsigned(__any_sync(~below, predicate[t]));
        out[2 * n + t] = unsigned(__all_sync(~below, predicate[t]));
    }
}

__global__ void barriers(const int* predicate, int* out) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    out[t] = __syncthreads_or(predicate[t]) != 0;
    out[n + t] = __syncthreads_and(predicate[t]) != 0;
    out[2 * n + t] = __syncthreads_count(predicate[t]);
}

/* out [9, threads] */
__global__ void warp_reductions(const int* in, int* out) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    const unsigned all = 0xffffffffu, u = unsigned(in[t]);
    out[t] = __reduce_add_sync(all, in[t]);
    out[n + t] = __reduce_min_sync(all, in[t]);
    out[2 * n + t] = __reduce_max_sync(all, in[t]);
    out[3 * n + t] = int(__reduce_add_sync(all, u));
    out[4 * n + t] = int(__reduce_min_sync(all, u));
    out[5 * n + t] = int(__reduce_max_sync(all, u));
    out[6 * n + t] = int(__reduce_and_sync(all, u));
    out[7 * n + t] = int(__reduce_or_sync(all, u));
    out[8 * n + t] = int(__reduce_xor_sync(all, u));
}

template <class T>
__global__ void histogram(const int* bin, const T* weight, T* out, int bins, int64_t n) {
    const auto counts = eqc_dynamic_shared<T>(0);
    for (int k = int(threadIdx.x); k < bins; k += int(blockDim.x)) {
        counts[k] = T(0);
    }
    __syncthreads();
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
        atomicAdd(&counts[bin[i]], weight[i]);
    }
    __syncthreads();
    for (int k = int(threadIdx.x); k < bins; k += int(blockDim.x)) {
        atomicAdd(out + k, T(counts[k]));
    }
}

/* out: largest, smallest, last exchanged, taken by compare-and-swap, how many saw each old value once. */
__global__ void other_atomics(const int* in, int* out, int* seen) {
    atomicMax(out, in[threadIdx.x]);
    atomicMin(out + 1, in[threadIdx.x]);
    const int old = atomicExch(out + 2, int(threadIdx.x));
    atomicAdd(seen + old + 1, 1);
    for (int expected = 0; expected < int(blockDim.x); ++expected) {
        if (atomicCAS(out + 3, expected, expected + 1) == expected) {
            break;
        }
    }
}

/* Doubles and bytes in one piece of dynamic memory; the bytes come back a word at a time. */
__global__ void dynamic_memory(const double* in, double* reversed, unsigned* packed) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    const auto bytes = eqc_dynamic_shared<unsigned char>(size_t(n) * sizeof(double));
    const auto words = eqc_dynamic_shared<unsigned>(size_t(n) * sizeof(double));
    const eqc_shared_ptr<double> values = eqc_dynamic_shared<double>(0);
    values[t] = in[t];
    bytes[t] = (unsigned char)(t);
    __syncthreads();
    reversed[t] = values[n - 1 - t];
    if (t < n / 4) {
        packed[t] = words[t];
    }
}

__global__ void indices(int* out) {
    const dim3 g = gridDim, b = blockDim;
    const int block = int((blockIdx.z * g.y + blockIdx.y) * g.x + blockIdx.x);
    const int thread = int((threadIdx.z * b.y + threadIdx.y) * b.x + threadIdx.x);
    int* mine = out + 6 * (block * int(b.x * b.y * b.z) + thread);
    mine[0] = int(blockIdx.x), mine[1] = int(blockIdx.y), mine[2] = int(blockIdx.z);
    mine[3] = int(threadIdx.x), mine[4] = int(threadIdx.y), mine[5] = int(threadIdx.z);
}

/* Whole warps leave, and single threads that nobody waits for; the rest sum by shuffles. */
__global__ void early_exit(const int* in, int* out, int n) {
    const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (t / warpSize * warpSize >= n) {
        return;
    }
    int sum = t < n ? in[t] : 0;
    for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, unsigned(distance));
    }
    if (t % warpSize != 0) {
        return;
    }
    out[t / warpSize] = sum;
}

__global__ void active(unsigned* out) {
    unsigned mask;
    if (threadIdx.x % 3 == 0) {
        mask = __activemask();
    } else {
        mask = __activemask();
    }
    out[threadIdx.x] = mask + 0 * __reduce_add_sync(mask, 1u);
}

/* float4 by a plain pointer, shared memory and a view; double2 likewise. */
__global__ void vectors(const float* in, float* out_pointer, const double* in2, double* out2_pointer, int n) {
    EQC_SHARED_ARRAY(float, four, 128);
    EQC_SHARED_ARRAY(double, two, 128);
    const auto out = eqc_view(out_pointer, n);
    const auto out2 = eqc_view(out2_pointer, n);
    const int t = int(threadIdx.x);
    if (4 * t < n) {
        eqc_store_vector<float4>(four + 4 * t, eqc_load_vector<float4>(in + 4 * t));
    }
    eqc_store_vector<double2>(two + 2 * t, eqc_load_vector<double2>(in2 + 2 * t));
    __syncthreads();
    if (4 * t < n) {
        const float4 v = eqc_load_vector<float4>(four + (n - 4 - 4 * t));
        eqc_store_vector<float4>(out + 4 * t, make_float4(v.w, v.z, v.y, v.x));
    }
    const double2 v = eqc_load_vector<double2>(two + (n - 2 - 2 * t));
    eqc_store_vector<double2>(out2 + 2 * t, make_double2(v.y, v.x));
}

/* Values that live in registers and on the stack of each fibre, over many switches. */
__global__ void private_values(double* out, int rounds) {
    double values[16];
    for (int k = 0; k < 16; ++k) {
        values[k] = threadIdx.x + 0.5 * k;
    }
    double scale = 1.0 + threadIdx.x;
    for (int round = 0; round < rounds; ++round) {
        __syncthreads();
        for (int k = 0; k < 16; ++k) {
            values[k] += scale * __shfl_xor_sync(0xffffffffu, k, 1);
        }
        scale = -scale;
    }
    double sum = 0;
    for (int k = 0; k < 16; ++k) {
        sum += values[k];
    }
    out[threadIdx.x] = sum;
}

__global__ void bits(const int* in, int* out) {
    const int t = int(threadIdx.x), n = int(blockDim.x), x = in[t];
    out[t] = __popc(unsigned(x));
    out[n + t] = __clz(x);
    out[2 * n + t] = __ffs(x);
    out[3 * n + t] = int(__brev(unsigned(x)));
    out[4 * n + t] = __float_as_int(__int_as_float(x));
    out[5 * n + t] = __float2int_rn(float(x % 1000) / 2.0f);
}

__global__ void maths(const float* in, float* out) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    const float x = in[t];
    out[t] = rsqrtf(x);
    out[n + t] = __expf(-x);
    out[2 * n + t] = __fmaf_rn(x, x, -x);
    out[3 * n + t] = __frcp_rn(x);
    out[4 * n + t] = max(min(x, 2.0f), nanf(""));
    out[5 * n + t] = float(max(int(x), 2u)) + float(min(x, 1.5));
}

template <class T>
int run_shuffles(const T* in, T* out, int64_t width, int64_t parameter) {
    EQC_LAUNCH(shuffles<T>, 1, 64, 0, nullptr, in, out, int(width), int(parameter));
    return cudaGetLastError();
}

}  // namespace

EXPORT int block_sum_f32(const float* in, float* out, int64_t n, int64_t blocks) {
    EQC_LAUNCH((block_sum<float>), dim3(unsigned(blocks)), dim3(256), 0, nullptr, in, out, n);
    return cudaGetLastError();
}
EXPORT int block_sum_f64(const double* in, double* out, int64_t n, int64_t blocks) {
    EQC_LAUNCH((block_sum<double>), dim3(unsigned(blocks)), dim3(256), 0, nullptr, in, out, n);
    return cudaGetLastError();
}
EXPORT int shuffles_int32(const int* in, int* out, int64_t width, int64_t parameter) {
    return run_shuffles(in, out, width, parameter);
}
EXPORT int shuffles_uint32(const unsigned* in, unsigned* out, int64_t width, int64_t parameter) {
    return run_shuffles(in, out, width, parameter);
}
EXPORT int shuffles_int64(const long long* in, long long* out, int64_t width, int64_t parameter) {
    return run_shuffles(in, out, width, parameter);
}
EXPORT int shuffles_float32(const float* in, float* out, int64_t width, int64_t parameter) {
    return run_shuffles(in, out, width, parameter);
}
EXPORT int shuffles_float64(const double* in, double* out, int64_t width, int64_t parameter) {
    return run_shuffles(in, out, width, parameter);
}
EXPORT int run_votes(const int* predicate, unsigned* out, int64_t split) {
    EQC_LAUNCH(votes, 1, 96, 0, nullptr, predicate, out, int(split));
    return cudaGetLastError();
}
EXPORT int run_barriers(const int* predicate, int* out, int64_t threads) {
    EQC_LAUNCH(barriers, 1, unsigned(threads), 0, nullptr, predicate, out);
    return cudaGetLastError();
}
EXPORT int run_warp_reductions(const int* in, int* out) {
    EQC_LAUNCH(warp_reductions, 1, 64, 0, nullptr, in, out);
    return cudaGetLastError();
}
EXPORT int histogram_int32(const int* bin, const int* weight, int* out, int64_t bins, int64_t n) {
    EQC_LAUNCH((histogram<int>), unsigned(n + 127) / 128, 128, size_t(bins) * sizeof(int), nullptr, bin, weight, out,
               int(bins), n);
    return cudaGetLastError();
}
EXPORT int histogram_uint64(const int* bin, const unsigned long long* weight, unsigned long long* out, int64_t bins,
                            int64_t n) {
    EQC_LAUNCH((histogram<unsigned long long>), unsigned(n + 127) / 128, 128, size_t(bins) * 8, nullptr, bin, weight,
               out, int(bins), n);
    return cudaGetLastError();
}
EXPORT int histogram_float32(const int* bin, const float* weight, float* out, int64_t bins, int64_t n) {
    EQC_LAUNCH((histogram<float>), unsigned(n + 127) / 128, 128, size_t(bins) * sizeof(float), nullptr, bin, weight,
               out, int(bins), n);
    return cudaGetLastError();
}
EXPORT int histogram_float64(const int* bin, const double* weight, double* out, int64_t bins, int64_t n) {
    EQC_LAUNCH((histogram<double>), unsigned(n + 127) / 128, 128, size_t(bins) * sizeof(double), nullptr, bin, weight,
               out, int(bins), n);
    return cudaGetLastError();
}
EXPORT int run_other_atomics(const int* in, int* out, int* seen, int64_t threads) {
    EQC_LAUNCH(other_atomics, 1, unsigned(threads), 0, nullptr, in, out, seen);
    return cudaGetLastError();
}
EXPORT int run_dynamic_memory(const double* in, double* reversed, unsigned* packed, int64_t threads) {
    EQC_LAUNCH(dynamic_memory, 1, unsigned(threads), size_t(threads) * 9, nullptr, in, reversed, packed);
    return cudaGetLastError();
}
EXPORT int run_indices(int* out, const int* sizes) {
    EQC_LAUNCH(indices, dim3(unsigned(sizes[0]), unsigned(sizes[1]), unsigned(sizes[2])),
               dim3(unsigned(sizes[3]), unsigned(sizes[4]), unsigned(sizes[5])), 0, nullptr, out);
    return cudaGetLastError();
}
EXPORT int run_early_exit(const int* in, int* out, int64_t n) {
    EQC_LAUNCH(early_exit, 2, 128, 0, nullptr, in, out, int(n));
    return cudaGetLastError();
}
EXPORT int run_active(unsigned* out) {
    EQC_LAUNCH(active, 1, 32, 0, nullptr, out);
    return cudaGetLastError();
}
EXPORT int run_vectors(const float* in, float* out, const double* in2, double* out2) {
    EQC_LAUNCH(vectors, 1, 64, 0, nullptr, in, out, in2, out2, 128);
    return cudaGetLastError();
}
EXPORT int run_private_values(double* out, int64_t rounds) {
    EQC_LAUNCH(private_values, 1, 1024, 0, nullptr, out, int(rounds));
    return cudaGetLastError();
}
EXPORT int run_bits(const int* in, int* out, int64_t n) {
    EQC_LAUNCH(bits, 1, unsigned(n), 0, nullptr, in, out);
    return cudaGetLastError();
}
EXPORT int run_maths(const float* in, float* out, int64_t n) {
    EQC_LAUNCH(maths, 1, unsigned(n), 0, nullptr, in, out);
    return cudaGetLastError();
}
