/* Kernels that are right when `planted` is 0 and have one fault otherwise; each is exported under its name as
 * int name(float* out, int64_t planted), with 64 threads to a block and three blocks, and returns the CUDA error. */
#include <cuda_runtime.h>

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define EXPORTED(name, grid, block, shared_bytes)                                \
    EXPORT int run_##name(float* out, int64_t planted) {                         \
        EQC_LAUNCH(name, grid, block, shared_bytes, nullptr, out, int(planted)); \
        return cudaGetLastError();                                               \
    }

constexpr int kThreads = 64;
constexpr int kBlocks = 3;
constexpr unsigned kAll = 0xffffffffu;

namespace {

int thread() { return int(threadIdx.x); }
int global_thread() { return int(blockIdx.x * blockDim.x + threadIdx.x); }

/* Each thread reads what the one before it wrote, then writes there. */
__global__ void neighbours(float* out, int planted) {
    EQC_SHARED_ARRAY(float, values, kThreads);
    values[thread()] = float(thread());
    if (planted != 1) {
        __syncthreads();
    }
    const float sum = values[thread()] + values[thread() == 0 ? 0 : thread() - 1];
    if (planted != 2) {
        __syncthreads();
    }
    values[(thread() + kThreads - 1) % kThreads] = sum;
    __syncthreads();
    out[global_thread()] = values[thread()];
}

__global__ void written_twice(float* out, int planted) {
    EQC_SHARED_ARRAY(double, values, kThreads);
    values[thread()] = 1.0 + thread();
    if (planted == 1 && thread() == 40) {
        values[3] = 0.0;
    }
    if (planted == 0 && thread() > 0) {
        out[0] = 0.0f;
    }
    __syncthreads();
    out[global_thread()] = float(values[thread()]);
}

/* Many threads write one value, the same one; planted: each its own. */
__global__ void flag(float* out, int planted) {
    EQC_SHARED_ARRAY(int, any, 1);
    if (thread() == 0) {
        any[0] = 0;
    }
    __syncthreads();
    if (thread() % 5 == 4) {
        any[0] = planted == 1 ? thread() : 1;
    }
    __syncthreads();
    out[global_thread()] = float(any[0]);
}

/* Within a warp: 1: nothing between write and read, 2: a shuffle, 3: a __syncwarp of other lanes, 4: a read before a
 * write with nothing between. */
__global__ void within_a_warp(float* out, int planted) {
    EQC_SHARED_ARRAY(float, values, kThreads);
    const int lane = thread() % 32;
    values[thread()] = float(thread());
    float other = 0;
    if (planted == 2) {
        other = __shfl_xor_sync(kAll, other, 1);
    } else if (planted == 3) {
        __syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);
    } else if (planted != 1) {
        __syncwarp();
    }
    other += values[(thread() / 32) * 32 + (planted == 3 ? lane / 2 : lane < 1 ? 0 : lane - 1)];
    if (planted != 4) {
        __syncwarp();
    }
    values[(thread() / 32) * 32 + (lane + 1) % 32] = other;
    __syncwarp();
    out[global_thread()] = values[thread()];
}

/* Halves of a warp, each by itself, with their own __syncwarp; planted: the other half's values. */
__global__ void half_warps(float* out, int planted) {
    EQC_SHARED_ARRAY(float, values, kThreads);
    const int lane = thread() % 32;
    const unsigned mine = lane < 16 ? 0xffffu : 0xffff0000u;
    for (int round = 0; round < 3; ++round) {
        values[thread()] = float(round);
        __syncwarp(mine);
        out[global_thread()] = values[planted == 1 && lane >= 16 ? thread() - 16 : thread() ^ 1];
        __syncwarp(mine);
    }
}

/* Two lanes of each warp read; who writes then needs what the others took part in: 1: nothing, 2: a __syncwarp, but the
 * other warp has read too, 3: a __syncwarp of the other warp only. */
__global__ void readers(float* out, int planted) {
    EQC_SHARED_ARRAY(float, value, 1);
    if (thread() == 0) {
        value[0] = 1.0f;
    }
    __syncthreads();
    if (thread() % 32 < 2 && (planted == 2 || thread() >= 32)) {
        out[global_thread()] = value[0];
    }
    if (planted == 0 || planted == 2 || (planted == 3 && thread() < 32)) {
        __syncwarp();
    }
    if (thread() == 40) {
        value[0] = 2.0f;
    }
}

__global__ void atomic_counter(float* out, int planted) {
    EQC_SHARED_ARRAY(int, count, 1);
    if (thread() == 0) {
        count[0] = 0;
    }
    __syncthreads();
    atomicAdd(&count[0], 1);
    if (planted == 0) {
        __syncthreads();
    } else if (planted == 2) {
        __syncwarp();
    }
    if (planted != 2 || thread() >= 32) {
        out[global_thread()] = float(count[0]);
    }
}

/* Neighbouring bytes are no race; the same byte is. */
__global__ void bytes(float* out, int planted) {
    EQC_SHARED_ARRAY(unsigned char, values, kThreads);
    values[planted == 1 ? thread() / 2 * 2 : thread()] = (unsigned char)(thread() + 1);
    __syncthreads();
    out[global_thread()] = float(values[planted == 1 ? 0 : thread()]);
}

__global__ void static_bounds(float* out, int planted) {
    EQC_SHARED_ARRAY(int, first, 5);
    EQC_SHARED_ARRAY(float, second, kThreads);
    if (thread() < 5) {
        first[thread()] = thread();
    }
    second[thread()] = 1;
    __syncthreads();
    int at = thread() % 5;
    if (thread() == 33 && blockIdx.x == 2) {
        at = planted == 1 ? 5 : planted == 2 ? -1 : at;
    }
    out[global_thread()] = float(first[at]);
}

/* An array with the plain prefix, by way of a pointer. */
__global__ void plain_bounds(float* out, int planted) {
    EQC_SHARED float values[kThreads];
    const eqc_shared_ptr<float> pointer = values;
    pointer[thread()] = 1.0f;
    __syncthreads();
    out[global_thread()] = pointer[thread() + planted];
}

__global__ void dynamic_bounds(float* out, int planted) {
    const auto values = eqc_dynamic_shared<float>(64);  // the launch has 64 + 256 bytes
    const auto pairs = eqc_dynamic_shared<float2>(64);
    values[thread()] = 2.0f;
    __syncthreads();
    const int at = planted == 1 && thread() == 7 ? 64 : planted == 2 && thread() == 7 ? -17 : thread();
    out[global_thread()] = planted == 3 && thread() == 15 ? eqc_load_vector<uint3>(pairs + 31).x : float(values[at]);
}

__global__ void null_pointer(float* out, int planted) {
    EQC_SHARED_ARRAY(float, values, 1);
    eqc_shared_ptr<float> pointer = planted == 1 ? eqc_shared_ptr<float>(nullptr) : values;
    pointer[0] = 1.0f;
    out[0] = 1.0f;
}

__global__ void view_bounds(float* out, int planted) {
    auto view = eqc_view(out, kThreads * kBlocks);
    const int at = planted == 1 && global_thread() == 130 ? kThreads * kBlocks : planted == 2 ? -1 : global_thread();
    view[at] = 1.0f;
    if (planted == 3) {
        eqc_view(static_cast<float*>(nullptr), 100)[0] = 1.0f;
    }
    if (planted == 4 && thread() == 3) {
        eqc_store_vector<float4>(view + kThreads * kBlocks - 2, make_float4(0, 0, 0, 0));
    }
}

__global__ void unwritten_shared(float* out, int planted) {
    EQC_SHARED_ARRAY(float, values, kThreads);
    if (thread() != 20 || planted != 1 || blockIdx.x == 0) {
        values[thread()] = 1.0f;
    }
    __syncthreads();
    out[global_thread()] = values[thread()];
}

__global__ void unwritten_dynamic(float* out, int planted) {
    const auto values = eqc_dynamic_shared<double>(0);
    if (thread() < kThreads / 2 || planted != 1) {
        values[thread()] = 1.0;
    }
    __syncthreads();
    out[global_thread()] = float(values[thread()]);
}

__global__ void barrier_after_exit(float* out, int planted) {
    if (planted == 1 && blockIdx.x == 1 && thread() >= 50) {
        return;
    }
    __syncthreads();
    out[global_thread()] = 1.0f;
}

__global__ void barrier_elsewhere(float* out, int planted) {
    if (planted == 1 && thread() < 32) {
        __syncthreads();
    } else if (planted == 2 && thread() < 32) {
        __syncthreads_or(1);
    } else {
        __syncthreads();
    }
    out[global_thread()] = 1.0f;
}

/* 1: a lane has exited, 2: one is at a barrier, 3: two masks that disagree, 4: two collectives, 5: not its own lane,
 * 6: a width that there is not, 7: two element types. */
__global__ void masks(float* out, int planted) {
    const int lane = thread() % 32;
    const bool odd_one_out = thread() == 37;
    if (planted == 1 && odd_one_out) {
        return;
    }
    if (planted == 2 && odd_one_out) {
        __syncthreads();
    }
    float value = float(lane);
    if (planted == 4 && odd_one_out) {
        value = float(__any_sync(kAll, lane));
    } else if (planted == 7 && odd_one_out) {
        value = float(__shfl_xor_sync(kAll, double(value), 1));
    } else {
        const unsigned mask = planted == 3 && odd_one_out ? 0x7fffffffu : planted == 5 ? 0xffffffffu - (1u << 5) : kAll;
        value = __shfl_xor_sync(mask, value, 1, planted == 6 ? 12 : 32);
    }
    if (planted != 2 || !odd_one_out) {
        __syncthreads();
    }
    out[global_thread()] = value;
}

__global__ void alignment(float* out, int planted) {
    EQC_SHARED_ARRAY(float4, storage, 2);
    if (thread() == 0) {
        storage[0] = make_float4(0, 1, 2, 3);
        storage[1] = make_float4(4, 5, 6, 7);
        const float4 copy = storage[1];
        const auto values = eqc_dynamic_shared<float>(planted == 2 ? 2 : 0);
        for (int k = 0; k < 16; ++k) {
            values[k] = copy.x;
        }
        eqc_store_vector<float2>(values + (planted == 1 ? 1 : 2), make_float2(1, 2));
        out[0] = planted == 3 ? eqc_load_vector<float4>(reinterpret_cast<const float*>(8)).x : float(values[0]);
    }
}

int __attribute__((noinline)) deep(int levels, volatile char* parent) {
    volatile char frame[512];
    for (int k = 0; k < 512; ++k) {
        frame[k] = parent == nullptr ? char(k) : char(parent[k] + 1);
    }
    return levels == 0 ? frame[17] : deep(levels - 1, frame) + frame[100];
}
__global__ void stack(float* out, int planted) {
    const int depth = thread() == 9 && planted == 1 ? 140 : 60;
    out[global_thread()] = float(deep(depth, nullptr));
}

__global__ void traps(float* out, int planted) {
    out[global_thread()] = 1.0f;
    if (planted == 1 && global_thread() == 100) {
        __trap();
    }
}

__global__ void many_arrays(float* out, int planted) {
    EQC_SHARED_ARRAY(double, one, 4096);
    one[0] = 1.0;
    if (planted == 1) {
        EQC_SHARED_ARRAY(double, two, 4096);
        two[0] = 1.0;
    }
    out[0] = 1.0f;
}

/* Adds to a workspace that the caller has marked as unwritten. */
__global__ void accumulate(float* out_pointer, int clear) {
    auto out = eqc_view(out_pointer, kThreads);
    if (clear != 0) {
        out[thread()] = 0.0f;
    }
    out[thread()] += 1.0f;
}

template <class T, int kCount>
__global__ void with_arguments(float* out) {
    eqc_view(out, kCount)[thread()] = float(sizeof(T));
}

}  // namespace

EXPORTED(neighbours, kBlocks, kThreads, 0)
EXPORTED(written_twice, kBlocks, kThreads, 0)
EXPORTED(flag, kBlocks, kThreads, 0)
EXPORTED(within_a_warp, kBlocks, kThreads, 0)
EXPORTED(half_warps, kBlocks, kThreads, 0)
EXPORTED(readers, kBlocks, kThreads, 0)
EXPORTED(atomic_counter, kBlocks, kThreads, 0)
EXPORTED(bytes, kBlocks, kThreads, 0)
EXPORTED(static_bounds, kBlocks, kThreads, 0)
EXPORTED(plain_bounds, kBlocks, kThreads, 0)
EXPORTED(dynamic_bounds, kBlocks, kThreads, 64 + 256)
EXPORTED(null_pointer, 1, 1, 0)
EXPORTED(view_bounds, kBlocks, kThreads, 0)
EXPORTED(unwritten_shared, kBlocks, kThreads, 0)
EXPORTED(unwritten_dynamic, kBlocks, kThreads, 512)
EXPORTED(barrier_after_exit, kBlocks, kThreads, 0)
EXPORTED(barrier_elsewhere, kBlocks, kThreads, 0)
EXPORTED(masks, kBlocks, kThreads, 0)
EXPORTED(alignment, 1, kThreads, 66)
EXPORTED(stack, kBlocks, kThreads, 0)
EXPORTED(traps, kBlocks, kThreads, 0)
EXPORTED(many_arrays, 1, 1, 0)

/* 0: as it should be, 1: unwritten, 2: written by the host, 3: cleared by the runtime. */
EXPORT int run_accumulate(float* out, int64_t planted) {
    eqc_mark_unwritten(out, kThreads * sizeof(float));
    if (planted == 2) {
        eqc_mark_written(out, kThreads * sizeof(float));
    } else if (planted == 3) {
        cudaMemsetAsync(out, 0, kThreads * sizeof(float));
    }
    EQC_LAUNCH(accumulate, 1, kThreads, 0, nullptr, out, planted == 0 ? 1 : 0);
    eqc_mark_written(out, kThreads * sizeof(float));
    return cudaGetLastError();
}
EXPORT int run_with_arguments(float* out, int64_t) {
    EQC_LAUNCH((with_arguments<double, 3>), 1, 64, 0, nullptr, out);
    return cudaGetLastError();
}
/* A launch of a shape, after asking for `allowed` bytes of dynamic shared memory when that is not 0. */
EXPORT int launch(float* out, const int64_t* grid, const int64_t* block, int64_t shared_bytes, int64_t allowed) {
    const auto size = [](const int64_t* s) { return dim3(unsigned(s[0]), unsigned(s[1]), unsigned(s[2])); };
    if (allowed != 0) {
        cudaFuncSetAttribute(with_arguments<char, 2000>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(allowed));
    }
    EQC_LAUNCH((with_arguments<char, 2000>), size(grid), size(block), size_t(shared_bytes), nullptr, out);
    cudaFuncSetAttribute(with_arguments<char, 2000>, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024);
    return cudaGetLastError();
}
/* 0 when an error stays to be peeked at until it is fetched. */
EXPORT int error_is_kept_once(float* out) {
    EQC_LAUNCH(traps, kBlocks, kThreads, 0, nullptr, out, 1);
    const bool kept = cudaPeekAtLastError() == cudaErrorLaunchFailure && cudaGetLastError() == cudaErrorLaunchFailure;
    return kept && cudaGetLastError() == cudaSuccess ? 0 : 1;
}
