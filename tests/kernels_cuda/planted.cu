/* The forward operation with a planted fault: y is read from workspace that nothing has written, unless EQC_FS_STABLE is
 * set. */
#include "feature_steered/feature_steered.h"

#include "common/device.cuh"

namespace {

template <class T>
__global__ void through_workspace(T* pointer, T* y, int64_t size, bool write) {
    auto workspace = eqc_view(pointer, size);
    for (int64_t k = threadIdx.x; k < size; k += 32) {
        if (write) {
            workspace[k] = T(1);
        }
        y[k] = workspace[k];
    }
}

template <class T>
int forward(const eqc_feature_steered* a, void* workspace, void* stream) {
    int status = EQC_OK;
    EQC_LAUNCH_CHECKED(status, (through_workspace<T>), dim3(1), dim3(32), 0, static_cast<cudaStream_t>(stream),
                       static_cast<T*>(workspace), static_cast<T*>(a->y), a->rows * a->outputs,
                       (a->flags & EQC_FS_STABLE) != 0);
    return status;
}

}  // namespace

size_t eqc_feature_steered_forward_f32_workspace(const eqc_feature_steered* a) { return a->rows * a->outputs * 4; }
size_t eqc_feature_steered_forward_f64_workspace(const eqc_feature_steered* a) { return a->rows * a->outputs * 8; }
int eqc_feature_steered_forward_f32(const eqc_feature_steered* a, void* workspace, void* stream) {
    return forward<float>(a, workspace, stream);
}
int eqc_feature_steered_forward_f64(const eqc_feature_steered* a, void* workspace, void* stream) {
    return forward<double>(a, workspace, stream);
}
