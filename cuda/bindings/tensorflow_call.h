/* A call of a compiled operation from a TensorFlow operator: where it runs, its inputs, its workspace and its stream.
 *
 * The GPU kernels need no CUDA header: all they take from TensorFlow is the stream.
 */
#ifndef EQC_TENSORFLOW_CALL_H
#define EQC_TENSORFLOW_CALL_H

#include <array>
#include <cstring>
#include <string>

#include "cores.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "xla/stream_executor/stream.h"

namespace eqc {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

/* Stands for memory of size 0, for which TensorFlow gives a null pointer. */
alignas(64) inline char no_memory[64];

inline void* memory_of(const Tensor& tensor) {
    void* data = const_cast<char*>(tensor.tensor_data().data());
    return data == nullptr ? no_memory : data;
}

/* What the operators of all families have in common: the core they run in, and running there. */
template <typename T, Place device>
class CoreKernel : public tensorflow::OpKernel {
  public:
    explicit CoreKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
        std::string core;
        OP_REQUIRES_OK(ctx, ctx->GetAttr("core", &core));
        OP_REQUIRES(ctx, core.empty() || (core == "emulated" && device == CPU),
                    absl::InvalidArgumentError("core is '" + core + "': allowed: '' and, on the CPU, 'emulated'"));
        place_ = core.empty() ? device : EMULATED;
    }

  protected:
    static constexpr bool wide = sizeof(T) == sizeof(double);

    absl::Status present(const AnyOperation& operation) const {
        if (operation.present(place_, wide)) return absl::OkStatus();
        return absl::FailedPreconditionError(absent(operation.name(), place_));
    }

    template <typename Arguments>
    absl::Status run(OpKernelContext* ctx, const Operation<Arguments>& operation, Arguments& arguments) const {
        void* stream = nullptr;
        if constexpr (device == CUDA) {
            stream = ctx->op_device_context()->stream()->platform_specific_handle().stream;
        } else if (arguments.threads == 0) {
            arguments.threads = ctx->device()->tensorflow_cpu_worker_threads()->num_threads;
        }
        Tensor workspace;
        const size_t bytes = operation.workspace(place_, wide, arguments);
        TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_UINT8, TensorShape({int64_t(bytes)}), &workspace));
        if (place_ == CPU) prefer_large_pages(memory_of(workspace), bytes);
        const int status = operation.run(place_, wide, arguments, memory_of(workspace), bytes, stream);
        if (status == EQC_OK) return absl::OkStatus();
        return absl::InternalError(fault(operation.name(), place_, status));
    }

    /* The memory of an output that nothing was written to. */
    static void* fresh(const Tensor& tensor) {
        if (device == CPU) prefer_large_pages(memory_of(tensor), tensor.TotalBytes());
        return memory_of(tensor);
    }

    /* The memory of an input of this shape. */
    template <size_t rank>
    static absl::Status input(OpKernelContext* ctx, const char* name, const std::array<int64_t, rank>& shape,
                              const void** memory) {
        const Tensor* tensor;
        TF_RETURN_IF_ERROR(ctx->input(name, &tensor));
        const TensorShape expected(shape);
        if (tensor->shape() != expected)
            return absl::InvalidArgumentError(std::string(name) + " has shape " + tensor->shape().DebugString() +
                                              ": expected " + expected.DebugString());
        *memory = memory_of(*tensor);
        return absl::OkStatus();
    }

    /* A copy of a tensor, so that its memory is not that of another. */
    static absl::Status copy(OpKernelContext* ctx, const Tensor& tensor, Tensor* made) {
        TF_RETURN_IF_ERROR(ctx->allocate_temp(tensor.dtype(), tensor.shape(), made));
        if (device == CPU) {
            std::memcpy(memory_of(*made), memory_of(tensor), tensor.TotalBytes());
            return absl::OkStatus();
        }
        absl::Status status;
        auto* tensorflow_device = static_cast<tensorflow::Device*>(ctx->device());
        ctx->op_device_context()->CopyTensorInSameDevice(&tensor, tensorflow_device, made,
                                                         [&status](const absl::Status& done) { status = done; });
        return status;
    }

    Place place_ = device;
};

}  // namespace eqc

#endif
