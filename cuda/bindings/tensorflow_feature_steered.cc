/* Feature-steered convolution as TensorFlow operators.
 *
 * What a Python caller can get wrong is checked here, so that no call reads memory that is not its own; the contents of
 * index arrays are those of a plan and are not checked again. Gradients are registered in Python.
 */
#include "feature_steered_pattern.h"
#include "tensorflow_call.h"

namespace {

using eqc::CoreKernel;
using eqc::InferenceContext;
using eqc::memory_of;
using eqc::no_memory;
using eqc::OpKernelConstruction;
using eqc::OpKernelContext;
using eqc::ShapeHandle;
using eqc::Tensor;
using eqc::TensorShape;

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
        OP_REQUIRES_OK(ctx, this->run(ctx, forward_operation, a));
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
        OP_REQUIRES_OK(ctx, this->run(ctx, backward_operation, a));
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

#define REGISTER_FEATURE_STEERED(T)                                                                                    \
    REGISTER_KERNEL_BUILDER(Name("EqconvFeatureSteeredForward").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                            FeatureSteeredForward<T, eqc::CPU>);                                                       \
    REGISTER_KERNEL_BUILDER(                                                                                           \
        Name("EqconvFeatureSteeredBackward").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),                    \
        FeatureSteeredBackward<T, eqc::CPU>);                                                                          \
    REGISTER_KERNEL_BUILDER(Name("EqconvFeatureSteeredForward")                                                        \
                                .Device(tensorflow::DEVICE_GPU)                                                        \
                                .HostMemory("layout")                                                                  \
                                .TypeConstraint<T>("T"),                                                               \
                            FeatureSteeredForward<T, eqc::CUDA>);                                                      \
    REGISTER_KERNEL_BUILDER(Name("EqconvFeatureSteeredBackward")                                                       \
                                .Device(tensorflow::DEVICE_GPU)                                                        \
                                .HostMemory("layout")                                                                  \
                                .TypeConstraint<T>("T"),                                                               \
                            FeatureSteeredBackward<T, eqc::CUDA>);

REGISTER_FEATURE_STEERED(float)
REGISTER_FEATURE_STEERED(double)
