/* What every block-sparse operation on CUDA needs beside the common: limits of sizes, lists that may be shorter than
 * their capacity.
 */
#ifndef EQC_BLOCK_SPARSE_LAUNCH_CUH
#define EQC_BLOCK_SPARSE_LAUNCH_CUH

#include "../common/launch.cuh"
#include "block_sparse.h"

namespace eqc {

constexpr int64_t kLargestSize = int64_t(1) << 29;  // of an axis, a window, a stride, an offset: sums of some stay ints

/* How many entries of a list count. */
__device__ __forceinline__ int64_t entries(const int32_t* count, int64_t capacity) {
    if (count == nullptr) {
        return capacity;
    }
    const int64_t given = *count;
    return given < 0 ? 0 : given < capacity ? given : capacity;
}

}  // namespace eqc

#endif
