/* The expansion of steerable kernels and its transpose as TensorFlow operators; gradients are registered in Python. */
#include <vector>

#include "steerable_tables.h"
#include "tensorflow_call.h"

namespace {

using eqc::CoreKernel;
using eqc::InferenceContext;
using eqc::memory_of;
using eqc::OpKernelConstruction;
using eqc::OpKernelContext;
using eqc::ShapeHandle;
using eqc::Tensor;
using eqc::TensorShape;

const eqc::Operation<eqc_expansion> forward_operation("expand_forward");
const eqc::Operation<eqc_expansion> backward_operation("expand_backward");

/* The attribute `sizes`, of a kernel or of a shape function. */
template <typename Context>
absl::Status sizes_of(Context* ctx, eqc_expansion* a) {
    std::vector<int64_t> sizes;
    TF_RETURN_IF_ERROR(ctx->GetAttr("sizes", &sizes));
    const std::string wrong = eqc::set_sizes(sizes.data(), sizes.size(), *a);
    return wrong.empty() ? absl::OkStatus() : absl::InvalidArgumentError(wrong);
}

template <typename T, eqc::Place device>
class Expansion : public CoreKernel<T, device> {
  public:
    explicit Expansion(OpKernelConstruction* ctx) : CoreKernel<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, sizes_of(ctx, &sizes_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("flags", &sizes_.flags));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("threads", &sizes_.threads));
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  protected:
    virtual absl::Status compute(OpKernelContext* ctx) const = 0;

    /* What both have in common: everything but weights and filter. */
    absl::Status fill(OpKernelContext* ctx, eqc_expansion* a) const {
        *a = sizes_;
        const Tensor *words, *reals;
        TF_RETURN_IF_ERROR(ctx->input("words", &words));
        TF_RETURN_IF_ERROR(ctx->input("reals", &reals));
        if (words->dims() != 1 || reals->dims() != 1)
            return absl::InvalidArgumentError("words and reals have shapes " + words->shape().DebugString() + " and " +
                                              reals->shape().DebugString() + ": expected one axis each");
        const std::string wrong =
            eqc::set_tables(static_cast<const int32_t*>(memory_of(*words)), words->NumElements(), memory_of(*reals),
                            reals->NumElements(), this->wide, *a);
        return wrong.empty() ? absl::OkStatus() : absl::InvalidArgumentError(wrong);
    }

  private:
    /* Without tables. */
    eqc_expansion sizes_ = {};
};

template <typename T, eqc::Place device>
class ExpandForward : public Expansion<T, device> {
  public:
    using Expansion<T, device>::Expansion;

  protected:
    absl::Status compute(OpKernelContext* ctx) const override {
        TF_RETURN_IF_ERROR(this->present(forward_operation));
        eqc_expansion a;
        TF_RETURN_IF_ERROR(this->fill(ctx, &a));
        const void* weights;
        TF_RETURN_IF_ERROR((this->template input<1>(ctx, "weights", {a.weights_size}, &weights)));
        a.weights = const_cast<void*>(weights);
        Tensor* filter;
        TF_RETURN_IF_ERROR(
            ctx->allocate_output(0, TensorShape({a.out_channels, a.in_channels, a.pixels}), &filter));
        a.filter = this->fresh(*filter);
        return this->run(ctx, forward_operation, a);
    }
};

template <typename T, eqc::Place device>
class ExpandBackward : public Expansion<T, device> {
  public:
    using Expansion<T, device>::Expansion;

  protected:
    absl::Status compute(OpKernelContext* ctx) const override {
        TF_RETURN_IF_ERROR(this->present(backward_operation));
        eqc_expansion a;
        TF_RETURN_IF_ERROR(this->fill(ctx, &a));
        const void* filter;
        const std::array<int64_t, 3> shape = {a.out_channels, a.in_channels, a.pixels};
        TF_RETURN_IF_ERROR((this->template input<3>(ctx, "filter", shape, &filter)));
        a.filter = const_cast<void*>(filter);
        Tensor* weights;
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, TensorShape({a.weights_size}), &weights));
        a.weights = this->fresh(*weights);
        return this->run(ctx, backward_operation, a);
    }
};

absl::Status forward_shape(InferenceContext* c) {
    eqc_expansion a = {};
    TF_RETURN_IF_ERROR(sizes_of(c, &a));
    ShapeHandle weights;
    TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->Vector(a.weights_size), &weights));
    c->set_output(0, c->MakeShape({a.out_channels, a.in_channels, a.pixels}));
    return absl::OkStatus();
}

absl::Status backward_shape(InferenceContext* c) {
    eqc_expansion a = {};
    TF_RETURN_IF_ERROR(sizes_of(c, &a));
    ShapeHandle filter;
    TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->MakeShape({a.out_channels, a.in_channels, a.pixels}), &filter));
    c->set_output(0, c->Vector(a.weights_size));
    return absl::OkStatus();
}

}  // namespace

REGISTER_OP("EqconvExpandForward")
    .Input("weights: T")
    .Input("words: int32")
    .Input("reals: T")
    .Output("filter: T")
    .Attr("T: {float, double}")
    .Attr("sizes: list(int)")
    .Attr("flags: int")
    .Attr("threads: int = 0")
    .Attr("core: string = ''")
    .SetShapeFn(forward_shape);

REGISTER_OP("EqconvExpandBackward")
    .Input("filter: T")
    .Input("words: int32")
    .Input("reals: T")
    .Output("weights: T")
    .Attr("T: {float, double}")
    .Attr("sizes: list(int)")
    .Attr("flags: int")
    .Attr("threads: int = 0")
    .Attr("core: string = ''")
    .SetShapeFn(backward_shape);

#define EQC_KERNEL(name, Kernel)                                                                               \
    REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU).TypeConstraint<float>("T"),              \
                            Kernel<float, eqc::CPU>);                                                          \
    REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU).TypeConstraint<double>("T"),             \
                            Kernel<double, eqc::CPU>);                                                         \
    REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_GPU).TypeConstraint<float>("T"),              \
                            Kernel<float, eqc::CUDA>);                                                         \
    REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_GPU).TypeConstraint<double>("T"),             \
                            Kernel<double, eqc::CUDA>);

EQC_KERNEL("EqconvExpandForward", ExpandForward)
EQC_KERNEL("EqconvExpandBackward", ExpandBackward)
