/* What every .cu file needs, for nvcc and for the host compiler (cuda/emulation/) alike: launching with a check, the
 * names of shared memory and of checked pointers, 16-byte loads, copies that run ahead, sums within a warp, divisions
 * by a number that the host knows, and words that blocks pass to each other.
 */
#ifndef EQC_DEVICE_CUH
#define EQC_DEVICE_CUH

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <cuda_runtime.h>

#include "contract.h"

#ifdef __CUDACC__
/* The names that cuda/emulation/cuda_runtime.h gives to memory it watches; plain pointers on the device. */
#define EQC_SHARED_ARRAY(T, name, ...) __shared__ T name[__VA_ARGS__]
template <class T>
using eqc_shared_ptr = T*;

template <class T>
__device__ __forceinline__ eqc_shared_ptr<T> eqc_dynamic_shared(size_t byte_offset) {
    extern __shared__ __align__(128) unsigned char eqc_dynamic_shared_bytes[];
    return reinterpret_cast<T*>(eqc_dynamic_shared_bytes + byte_offset);
}
template <class T>
__device__ __forceinline__ T* eqc_view(T* pointer, int64_t) {
    return pointer;
}
template <class Vector, class T>
__device__ __forceinline__ Vector eqc_load_vector(const T* from) {
    return *reinterpret_cast<const Vector*>(from);
}
template <class Vector, class T>
__device__ __forceinline__ void eqc_store_vector(T* to, Vector value) {
    *reinterpret_cast<Vector*>(to) = value;
}
#define EQC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#endif

namespace eqc {

constexpr unsigned kAllLanes = 0xffffffffu;

inline int status_of(cudaError_t error) {
#ifdef __CUDACC__
    return error == cudaSuccess ? EQC_OK : EQC_CUDA_ERROR + int(error);
#else
    return error == cudaSuccess ? EQC_OK : EQC_EMULATION_FAULT;
#endif
}

/* Launches unless something failed before, and keeps the first failure. Nothing waits for the device. */
#define EQC_LAUNCH_CHECKED(status, kernel, grid, block, shared_bytes, stream, ...)           \
    do {                                                                                     \
        if ((status) == EQC_OK) {                                                            \
            (status) = ::eqc::allow_shared(kernel, shared_bytes);                            \
        }                                                                                    \
        if ((status) == EQC_OK) {                                                            \
            EQC_LAUNCH(kernel, grid, block, shared_bytes, stream, __VA_ARGS__);              \
            (status) = ::eqc::status_of(cudaGetLastError());                                 \
        }                                                                                    \
    } while (0)

/* More than 48 KiB of shared memory have to be asked for, kernel by kernel. The arrays that a kernel declares itself
 * count, too; `bytes` leaves them out, and they take at most 16 KiB. */
template <class Kernel>
int allow_shared(Kernel kernel, size_t bytes) {
    if (bytes <= 32 * 1024) {
        return EQC_OK;
    }
    return status_of(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

/* 16 bytes of T. */
template <class T>
struct Vector16;
template <>
struct Vector16<float> {
    using type = float4;
    static constexpr int width = 4;
};
template <>
struct Vector16<double> {
    using type = double2;
    static constexpr int width = 2;
};

template <class Pointer>
__device__ __forceinline__ void load16(Pointer from, float (&to)[4]) {
    const float4 v = eqc_load_vector<float4>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
template <class Pointer>
__device__ __forceinline__ void load16(Pointer from, double (&to)[2]) {
    const double2 v = eqc_load_vector<double2>(from);
    to[0] = v.x, to[1] = v.y;
}
template <class Pointer>
__device__ __forceinline__ void store16(Pointer to, const float (&from)[4]) {
    eqc_store_vector<float4>(to, make_float4(from[0], from[1], from[2], from[3]));
}
template <class Pointer>
__device__ __forceinline__ void store16(Pointer to, const double (&from)[2]) {
    eqc_store_vector<double2>(to, make_double2(from[0], from[1]));
}

/* N consecutive elements, N a multiple of the 16-byte width: by vectors, or one by one up to `valid` (0 beyond). */
template <class T, int N, class Pointer>
__device__ __forceinline__ void load(Pointer from, bool vectors, int valid, T (&to)[N]) {
    constexpr int kWidth = Vector16<T>::width;
    static_assert(N % kWidth == 0, "whole vectors");
    if (vectors) {
#pragma unroll
        for (int i = 0; i < N; i += kWidth) {
            T part[kWidth] = {};
            if (i < valid) {
                load16(from + i, part);
            }
#pragma unroll
            for (int k = 0; k < kWidth; ++k) {
                to[i + k] = part[k];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            to[i] = i < valid ? T(from[i]) : T(0);
        }
    }
}

template <class T, int N, class Pointer>
__device__ __forceinline__ void store(Pointer to, bool vectors, int valid, const T (&from)[N]) {
    constexpr int kWidth = Vector16<T>::width;
    static_assert(N % kWidth == 0, "whole vectors");
    if (vectors) {
#pragma unroll
        for (int i = 0; i < N; i += kWidth) {
            if (i < valid) {
                T part[kWidth];
#pragma unroll
                for (int k = 0; k < kWidth; ++k) {
                    part[k] = from[i + k];
                }
                store16(to + i, part);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i < valid) {
                to[i] = from[i];
            }
        }
    }
}

/* Starts a copy of kElements from global to shared memory (zeros when not `valid`); it has arrived after
 * copies_arrive() and a barrier. The source must be an address of an allocation also when not valid. */
template <int kElements, class T>
__device__ __forceinline__ void copy_ahead(eqc_shared_ptr<T> to, const T* from, bool valid) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    constexpr int kBytes = kElements * int(sizeof(T));
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "a size that cp.async has");
    const unsigned address = unsigned(__cvta_generic_to_shared(to));
    const int bytes = valid ? kBytes : 0;
    if constexpr (kBytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(bytes)
                     : "memory");
    }
#else
    for (int i = 0; i < kElements; ++i) {
        to[i] = valid ? from[i] : T(0);
    }
#endif
}
__device__ __forceinline__ void copies_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* Sum and maximum over aligned groups of kLanes lanes; every lane of the warp takes part and gets its group's. */
template <int kLanes, class T>
__device__ __forceinline__ T group_sum(T value) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
}
template <int kLanes, class T>
__device__ __forceinline__ T group_max(T value) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, distance);
        value = other > value ? other : value;
    }
    return value;
}
/* Lane l of each group of kLanes gets the group's sum of terms[l]; kLanes - 1 shuffles instead of kLanes log(kLanes).
 * */
template <int kLanes, class T>
__device__ __forceinline__ T group_sums(T (&terms)[kLanes], int lane) {
#pragma unroll
    for (int half = kLanes / 2; half > 0; half /= 2) {
        const bool upper = (lane & half) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const T given = upper ? terms[i] : terms[i + half];
            const T kept = upper ? terms[i + half] : terms[i];
            terms[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
        }
    }
    return terms[0];
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* n / divisor and n % divisor for 0 <= n, divisor < 2^31 by a multiplication: with 2^s >= divisor, n / divisor is
 * (n + n * factor / 2^32) / 2^s (Granlund and Montgomery, PLDI 1994). */
class Divider {
   public:
    explicit Divider(int64_t divisor) : divisor_(unsigned(divisor < 1 || divisor > INT32_MAX ? 1 : divisor)) {
        while ((uint64_t(1) << shift_) < divisor_) {
            ++shift_;
        }
        factor_ = unsigned((((uint64_t(1) << shift_) - divisor_) << 32) / divisor_ + 1);
    }
    __device__ __forceinline__ unsigned quotient(unsigned n) const {
        return (unsigned(uint64_t(n) * factor_ >> 32) + n) >> shift_;
    }
    __device__ __forceinline__ unsigned remainder(unsigned n) const { return n - quotient(n) * divisor_; }
    __host__ __device__ __forceinline__ unsigned divisor() const { return divisor_; }

   private:
    unsigned divisor_;
    unsigned factor_;
    unsigned shift_ = 0;
};

/* Item first + step of rows of as many items as the divider divides by: `first`, the same in a block, may be beyond 32
 * bits and costs the one long division; row length + step stays below 2^31. */
struct RowStart {
    int64_t row;
    unsigned item;

    __device__ __forceinline__ RowStart(int64_t first, const Divider& length)
        : row(first / length.divisor()), item(unsigned(first - row * length.divisor())) {}
    __device__ __forceinline__ RowStart after(unsigned step, const Divider& length) const {
        RowStart next = *this;
        const unsigned rows = length.quotient(item + step);
        next.row += rows;
        next.item = item + step - rows * length.divisor();
        return next;
    }
};

/* A word by which one block of a running grid tells others something: it comes whole, and from where all see it. */
template <class Pointer>
__device__ __forceinline__ unsigned long long load_relaxed(Pointer from) {
#ifdef __CUDA_ARCH__
    unsigned long long value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
#else
    return *from;
#endif
}
template <class Pointer>
__device__ __forceinline__ void store_relaxed(Pointer to, unsigned long long value) {
#ifdef __CUDA_ARCH__
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
#else
    *to = value;
#endif
}

/* Hands out parts of one workspace, each 64-byte aligned; with base NULL it only counts. */
class Space {
   public:
    explicit Space(void* base) : base_(static_cast<char*>(base)) {}
    template <class T>
    T* take(int64_t count) {
        const size_t at = used_;
        used_ += (size_t(count < 0 ? 0 : count) * sizeof(T) + 63) / 64 * 64;
        return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
    }
    size_t used() const { return used_; }

   private:
    char* base_;
    size_t used_ = 0;
};

}  // namespace eqc

#endif
