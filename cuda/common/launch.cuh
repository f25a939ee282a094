/* What the host's side of operations on CUDA needs: products and ranges of sizes, grids, bytes that are set, and the
 * public functions.
 */
#ifndef EQC_LAUNCH_CUH
#define EQC_LAUNCH_CUH

#include <initializer_list>

#include "device.cuh"

namespace eqc {

constexpr int64_t kLargestGrid = INT32_MAX;  // blocks of a launch

/* The product of sizes of at least 0, or -1 when it is above `most`. */
inline int64_t product(std::initializer_list<int64_t> sizes, int64_t most) {
    int64_t found = 1;
    for (const int64_t size : sizes) {
        if (size == 0) {
            return 0;
        }
    }
    for (const int64_t size : sizes) {
        if (found > most / size) {
            return -1;
        }
        found *= size;
    }
    return found;
}

inline bool any_below(int64_t least, std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) {
        if (size < least) {
            return true;
        }
    }
    return false;
}

inline bool any_above(int64_t most, std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) {
        if (size > most) {
            return true;
        }
    }
    return false;
}

/* Blocks that take `share` each of `units`. */
inline dim3 grid_for(int64_t units, int64_t share) { return dim3(unsigned(ceil_div(units, share))); }

inline void fill_bytes(int& status, void* to, int byte, size_t bytes, cudaStream_t stream) {
    if (status == EQC_OK && bytes > 0) {
        status = status_of(cudaMemsetAsync(to, byte, bytes, stream));
    }
}

}  // namespace eqc

/* The public functions of an operation, from function_workspace<T>(arguments) and function<T>(arguments, workspace,
 * stream). */
#define EQC_DEFINE_TYPED(symbol, arguments, function, T)                                                        \
    EQC_API size_t symbol##_workspace(const arguments* a) {                                                     \
        return a == nullptr ? 0 : function##_workspace<T>(*a);                                                  \
    }                                                                                                           \
    EQC_API int symbol(const arguments* a, void* workspace, void* stream) {                                     \
        return a == nullptr ? EQC_BAD_ARGUMENT : function<T>(*a, workspace, static_cast<cudaStream_t>(stream)); \
    }
#define EQC_DEFINE(operation, arguments, function)                      \
    EQC_DEFINE_TYPED(eqc_##operation##_f32, arguments, function, float) \
    EQC_DEFINE_TYPED(eqc_##operation##_f64, arguments, function, double)

#endif
