/* The compiled operations as TensorFlow operators, for tf.load_op_library.
 *
 * What a Python caller can get wrong is checked here, so that no call reads memory that is not its own; the contents of
 * index arrays are those of a plan and are not checked again. Gradients are registered in Python. The GPU kernels need
 * no CUDA header: all they take from TensorFlow is the stream.
 */
#include <array>
#include <cstring>
#include <string>

#include "cores.h"
#include "feature_steered_pattern.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "xla/stream_executor/stream.h"

EQC_DEFINE_OPEN_CORE()

namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

/* Stands for memory of size 0, for which TensorFlow gives a null pointer. */
alignas(64) char no_memory[64];

void* memory_of(const Tensor& tensor) {
    void* data = const_cast<char*>(tensor.tensor_data().data());
    return data == nullptr ? no_memory : data;
}

/* What the operators of all families have in common: the core they run in, and running there. */
template <typename T, eqc::Place device>
class CoreKernel : public tensorflow::OpKernel {
  public:
    explicit CoreKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
        std::string core;
        OP_REQUIRES_OK(ctx, ctx->GetAttr("core", &core));
        OP_REQUIRES(ctx, core.empty() || (core == "emulated" && device == eqc::CPU),
                    absl::InvalidArgumentError("core is '" + core + "': allowed: '' and, on the CPU, 'emulated'"));
        place_ = core.empty() ? device : eqc::EMULATED;
    }

  protected:
    static constexpr bool wide = sizeof(T) == sizeof(double);

    absl::Status present(const eqc::AnyOperation& operation) const {
        if (operation.present(place_, wide)) return absl::OkStatus();
        return absl::FailedPreconditionError(eqc::absent(operation.name(), place_));
    }

    template <typename Arguments>
    void run(OpKernelContext* ctx, const eqc::Operation<Arguments>& operation, Arguments& arguments) const {
        void* stream = nullptr;
        if constexpr (device == eqc::CUDA) {
            stream = ctx->op_device_context()->stream()->platform_specific_handle().stream;
        } else if (arguments.threads == 0) {
            arguments.threads = ctx->device()->tensorflow_cpu_worker_threads()->num_threads;
        }
        Tensor workspace;
        const size_t bytes = operation.workspace(place_, wide, arguments);
        OP_REQUIRES_OK(ctx, ctx->allocate_temp(tensorflow::DT_UINT8, TensorShape({int64_t(bytes)}), &workspace));
        if (place_ == eqc::CPU) eqc::prefer_large_pages(memory_of(workspace), bytes);
        const int status = operation.run(place_, wide, arguments, memory_of(workspace), bytes, stream);
        OP_REQUIRES(ctx, status == EQC_OK, absl::InternalError(eqc::fault(operation.name(), place_, status)));
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
        if (device == eqc::CPU) {
            std::memcpy(memory_of(*made), memory_of(tensor), tensor.TotalBytes());
            return absl::OkStatus();
        }
        absl::Status status;
        auto* tensorflow_device = static_cast<tensorflow::Device*>(ctx->device());
        ctx->op_device_context()->CopyTensorInSameDevice(&tensor, tensorflow_device, made,
                                                         [&status](const absl::Status& done) { status = done; });
        return status;
    }

    eqc::Place place_ = device;
};

// Feature-steered convolution.

const eqc::Operation<eqc_feature_steered> forward_operation("feature_steered_forward");
const eqc::Operation<eqc_feature_steered> backward_operation("feature_steered_backward");

/* rows, edges, chunks, touched: the input `layout`. */
constexpr int64_t layout_length = 4;

template <typename T, eqc::Place device>
class FeatureSteered : public CoreKernel<T, device> {
  public:
    explicit FeatureSteered(OpKernelConstruction* ctx) : CoreKernel<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("flags", &flags_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("threads", &threads_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("tied", &tied_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("parts", &parts_));
    }

  protected:
    /* What forward and backward have in common: everything but b, y and the gradients. */
    absl::Status fill(OpKernelContext* ctx, bool backward, eqc_feature_steered* a, Tensor* own_centre) const {
        const Tensor *x, *w, *values, *pattern, *layout;
        TF_RETURN_IF_ERROR(ctx->input("x", &x));
        TF_RETURN_IF_ERROR(ctx->input("w", &w));
        TF_RETURN_IF_ERROR(ctx->input("values", &values));
        TF_RETURN_IF_ERROR(ctx->input("pattern", &pattern));
        TF_RETURN_IF_ERROR(ctx->input("layout", &layout));
        if (x->dims() != 2 || w->dims() != 3 || values->dims() != 1 || pattern->dims() != 1)
            return absl::InvalidArgumentError("x, w, values and pattern have shapes " + x->shape().DebugString() +
                                              ", " + w->shape().DebugString() + ", " + values->shape().DebugString() +
                                              " and " + pattern->shape().DebugString() +
                                              ": expected [V,C], [M,C,D], [E] and one axis");
        if (layout->shape() != TensorShape({layout_length}))
            return absl::InvalidArgumentError("layout has shape " + layout->shape().DebugString() + ": expected [4]");
        const auto numbers = layout->vec<int64_t>();
        const eqc::PatternSizes sizes = {numbers(0), x->dim_size(0), numbers(1), numbers(2), numbers(3), parts_};
        if (!sizes.sensible()) return absl::InvalidArgumentError("a size of the pattern is impossible");
        const char* lacks = eqc::lacking(sizes, this->place_, flags_, backward);
        if (lacks != nullptr) return absl::InvalidArgumentError(lacks);
        a->given_edges = values->dim_size(0);
        a->channels = x->dim_size(1);
        a->matrices = w->dim_size(0);
        a->outputs = w->dim_size(2);
        a->flags = flags_;
        a->threads = threads_;
        const bool selected = sizes.parts & eqc::EDGE_OF_SLOT;
        if (selected ? a->given_edges < sizes.edges : a->given_edges != sizes.edges)
            return absl::InvalidArgumentError("values has " + std::to_string(a->given_edges) +
                                              " entries but the pattern " + std::to_string(sizes.edges));
        if (tied_ && sizes.rows != sizes.cols)
            return absl::InvalidArgumentError("tied is true but there are " + std::to_string(sizes.rows) +
                                              " rows and " + std::to_string(sizes.cols) + " columns");
        const auto* words = static_cast<const int64_t*>(memory_of(*pattern));
        const int64_t needed = eqc::unpack_pattern(words, sizes, *a);
        if (pattern->NumElements() < needed)
            return absl::InvalidArgumentError("pattern has " + std::to_string(pattern->NumElements()) +
                                              " words: expected " + std::to_string(needed));
        a->x = memory_of(*x);
        TF_RETURN_IF_ERROR(this->template input<2>(ctx, "centre", {a->rows, a->channels}, &a->centre));
        if (tied_) {
            a->centre = a->x;
        } else if (a->centre == a->x) {
            // The same memory would tell the operation that both are one.
            const Tensor* centre;
            TF_RETURN_IF_ERROR(ctx->input("centre", &centre));
            TF_RETURN_IF_ERROR(this->copy(ctx, *centre, own_centre));
            a->centre = centre->NumElements() == 0 ? no_memory + 1 : memory_of(*own_centre);
        }
        TF_RETURN_IF_ERROR(this->template input<1>(ctx, "values", {a->given_edges}, &a->values));
        TF_RETURN_IF_ERROR(this->template input<2>(ctx, "u", {a->channels, a->matrices}, &a->u));
        TF_RETURN_IF_ERROR(this->template input<2>(ctx, "v", {a->channels, a->matrices}, &a->v));
        TF_RETURN_IF_ERROR(this->template input<1>(ctx, "c", {a->matrices}, &a->c));
        return this->template input<3>(ctx, "w", {a->matrices, a->channels, a->outputs}, &a->w);
    }

    /* The memory of an output that nothing was written to. */
    static void* fresh(const Tensor& tensor) {
        if (device == eqc::CPU) eqc::prefer_large_pages(memory_of(tensor), tensor.TotalBytes());
        return memory_of(tensor);
    }

    int32_t parts_ = 0;
    int32_t flags_ = 0;
    int32_t threads_ = 0;
    bool tied_ = false;
};

template <typename T, eqc::Place device>
class FeatureSteeredForward : public FeatureSteered<T, device> {
  public:
    using FeatureSteered<T, device>::FeatureSteered;

    void Compute(OpKernelContext* ctx) override {
        OP_REQUIRES_OK(ctx, this->present(forward_operation));
        eqc_feature_steered a = {};
        Tensor own_centre;
        OP_REQUIRES_OK(ctx, this->fill(ctx, false, &a, &own_centre));
        OP_REQUIRES_OK(ctx, (this->template input<1>(ctx, "b", {a.outputs}, &a.b)));
        Tensor* y;
        OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({a.rows, a.outputs}), &y));
        a.y = this->fresh(*y);
        this->run(ctx, forward_operation, a);
    }
};

template <typename T, eqc::Place device>
class FeatureSteeredBackward : public FeatureSteered<T, device> {
  public:
    explicit FeatureSteeredBackward(OpKernelConstruction* ctx) : FeatureSteered<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("wanted", &wanted_));
        OP_REQUIRES(ctx, !this->tied_ || !(wanted_ & (1 << eqc::DCENTRE)),
                    absl::InvalidArgumentError("the gradient of centre is wanted but it is x itself"));
    }

    void Compute(OpKernelContext* ctx) override {
        OP_REQUIRES_OK(ctx, this->present(backward_operation));
        eqc_feature_steered a = {};
        Tensor own_centre;
        OP_REQUIRES_OK(ctx, this->fill(ctx, true, &a, &own_centre));
        const std::array<int64_t, 2> result = {a.rows, a.outputs};
        OP_REQUIRES_OK(ctx, (this->template input<2>(ctx, "dy", result, &a.dy)));
        if (this->flags_ & EQC_FS_RELU) {
            const void* y = nullptr;
            OP_REQUIRES_OK(ctx, (this->template input<2>(ctx, "y", result, &y)));
            a.y = const_cast<void*>(y);
        }
        const std::array<TensorShape, eqc::GRADIENTS> shapes = {
            TensorShape({a.cols, a.channels}),     TensorShape({a.rows, a.channels}),
            TensorShape({a.given_edges}),          TensorShape({a.channels, a.matrices}),
            TensorShape({a.channels, a.matrices}), TensorShape({a.matrices}),
            TensorShape({a.matrices, a.channels, a.outputs}), TensorShape({a.outputs})};
        const std::array<void**, eqc::GRADIENTS> places = {&a.dx, &a.dcentre, &a.dvalues, &a.du,
                                                           &a.dv, &a.dc,      &a.dw,      &a.db};
        for (int k = 0; k < eqc::GRADIENTS; ++k) {
            const bool want = wanted_ & (1 << k);
            Tensor* made;
            OP_REQUIRES_OK(ctx, ctx->allocate_output(k, want ? shapes[k] : TensorShape({0}), &made));
            if (want) *places[k] = this->fresh(*made);
        }
        this->run(ctx, backward_operation, a);
    }

  private:
    int32_t wanted_ = 0;
};

absl::Status forward_shape(InferenceContext* c) {
    ShapeHandle x, centre, w;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &x));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &centre));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(6), 3, &w));
    c->set_output(0, c->Matrix(c->Dim(centre, 0), c->Dim(w, 2)));
    return absl::OkStatus();
}

absl::Status backward_shape(InferenceContext* c) {
    int32_t wanted;
    TF_RETURN_IF_ERROR(c->GetAttr("wanted", &wanted));
    ShapeHandle w;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(8), 3, &w));
    for (int k = 0; k < eqc::GRADIENTS; ++k) {
        const ShapeHandle like = k < eqc::DB ? c->input(2 + k) : c->Vector(c->Dim(w, 2));
        c->set_output(k, wanted & (1 << k) ? like : c->Vector(0));
    }
    return absl::OkStatus();
}

}  // namespace

REGISTER_OP("EqconvFeatureSteeredForward")
    .Input("x: T")
    .Input("centre: T")
    .Input("values: T")
    .Input("u: T")
    .Input("v: T")
    .Input("c: T")
    .Input("w: T")
    .Input("b: T")
    .Input("pattern: int64")
    .Input("layout: int64")
    .Output("y: T")
    .Attr("T: {float, double}")
    .Attr("tied: bool")
    .Attr("parts: int")
    .Attr("flags: int")
    .Attr("threads: int = 0")
    .Attr("core: string = ''")
    .SetShapeFn(forward_shape);

REGISTER_OP("EqconvFeatureSteeredBackward")
    .Input("dy: T")
    .Input("y: T")
    .Input("x: T")
    .Input("centre: T")
    .Input("values: T")
    .Input("u: T")
    .Input("v: T")
    .Input("c: T")
    .Input("w: T")
    .Input("pattern: int64")
    .Input("layout: int64")
    .Output("dx: T")
    .Output("dcentre: T")
    .Output("dvalues: T")
    .Output("du: T")
    .Output("dv: T")
    .Output("dc: T")
    .Output("dw: T")
    .Output("db: T")
    .Attr("T: {float, double}")
    .Attr("wanted: int")
    .Attr("tied: bool")
    .Attr("parts: int")
    .Attr("flags: int")
    .Attr("threads: int = 0")
    .Attr("core: string = ''")
    .SetShapeFn(backward_shape);

#define REGISTER_FEATURE_STEERED(T)                                                                                \
    REGISTER_KERNEL_BUILDER(                                                                                       \
        Name("EqconvFeatureSteeredForward").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),                 \
        FeatureSteeredForward<T, eqc::CPU>);                                                                       \
    REGISTER_KERNEL_BUILDER(                                                                                       \
        Name("EqconvFeatureSteeredBackward").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),                \
        FeatureSteeredBackward<T, eqc::CPU>);                                                                      \
    REGISTER_KERNEL_BUILDER(                                                                                       \
        Name("EqconvFeatureSteeredForward").Device(tensorflow::DEVICE_GPU).HostMemory("layout").TypeConstraint<T>("T"),  \
        FeatureSteeredForward<T, eqc::CUDA>);                                                                      \
    REGISTER_KERNEL_BUILDER(                                                                                       \
        Name("EqconvFeatureSteeredBackward").Device(tensorflow::DEVICE_GPU).HostMemory("layout").TypeConstraint<T>("T"), \
        FeatureSteeredBackward<T, eqc::CUDA>);

REGISTER_FEATURE_STEERED(float)
REGISTER_FEATURE_STEERED(double)
