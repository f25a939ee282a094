/* The runtime API of the emulated device: a device of the size of an H100 whose memory is the host's. */
#include <cstdlib>
#include <mutex>
#include <unordered_map>

#include "emulator.h"

namespace eqc_emulation {

namespace {

std::mutex attributes_mutex;
std::unordered_map<const void*, size_t> dynamic_limits;  // of the kernels that asked for more than the usual

cudaError_t failed_with(cudaError_t error) {
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

}  // namespace

size_t dynamic_limit(const void* kernel) {
    const std::lock_guard<std::mutex> lock(attributes_mutex);
    const auto found = dynamic_limits.find(kernel);
    return found == dynamic_limits.end() ? kStaticShared : found->second;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || size_t(value) > kLargestShared) {
            report = text("cudaFuncSetAttribute: %d bytes of dynamic shared memory: allowed: up to %zu", value,
                          kLargestShared);
            return failed_with(cudaErrorInvalidValue);
        }
        const std::lock_guard<std::mutex> lock(attributes_mutex);
        dynamic_limits[kernel] = size_t(value);
    }
    return cudaSuccess;
}

cudaError_t occupancy(int* blocks, int threads, size_t shared_bytes) {
    if (threads < 1 || threads > kMaxThreads || shared_bytes > kLargestShared) {
        return *blocks = 0, failed_with(cudaErrorInvalidValue);
    }
    const int by_threads = 2048 / ((threads + kWarp - 1) / kWarp * kWarp);
    const int by_shared = int(kMultiprocessorShared / (shared_bytes + 1024));  // 1 KB of each block is the system's
    *blocks = min(min(by_threads, by_shared), 32);
    return cudaSuccess;
}

}  // namespace eqc_emulation

using namespace eqc_emulation;

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        case cudaErrorNotSupported: return "cudaErrorNotSupported";
    }
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorLaunchFailure: return "the emulated device found a fault";
        case cudaErrorNotSupported: return "operation not supported";
    }
    return "unrecognized error code";
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    *pointer = bytes == 0 ? nullptr : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return failed_with(*pointer == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaFree(void* pointer) {
    std::free(pointer);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int byte, size_t bytes) {
    if (bytes > 0) {
        std::memset(to, byte, bytes);
        set_written(to, bytes);
    }
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) { return cudaMemset(to, byte, bytes); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    if (bytes > 0) {
        std::memcpy(to, from, bytes);
        set_written(to, bytes);
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return failed_with(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device != 0) {
        return failed_with(cudaErrorInvalidDevice);
    }
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = kMaxThreads; break;
        case cudaDevAttrMaxBlockDimX: *value = 1024; break;
        case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
        case cudaDevAttrMaxGridDimY: *value = 65535; break;
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(kStaticShared); break;
        case cudaDevAttrWarpSize: *value = kWarp; break;
        case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(kMultiprocessorShared); break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(kLargestShared); break;
        case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    }
    return cudaSuccess;
}
