/* SBNet's own operators for TensorFlow: names, attributes, inputs and results as in uber-research/sbnet.
 *
 * They differ where its are at fault: lists are in raster order and have the length that counts, sums of overlapping
 * blocks go in the order of the rows, and sizes are checked. Lists of int16 and their length are in host memory on
 * every device. An empty mask gives block (0, 0, 0), as there. Gradients are registered in Python.
 */
#include "tensorflow_block_sparse.h"
#include "tensorflow_variable.h"

namespace {

using eqc::BlockKernel;
using eqc::InferenceContext;
using eqc::MaskKernel;
using eqc::memory_of;
using eqc::numbers;
using eqc::OpKernelConstruction;
using eqc::OpKernelContext;
using eqc::ShapeHandle;
using eqc::Tensor;
using eqc::TensorShape;
using eqc::Windows;
using eqc::wrong_shape;

constexpr int32_t most_int16 = 32767;

absl::Status windows_of(OpKernelContext* ctx, Windows* windows) {
    TF_RETURN_IF_ERROR(numbers(ctx, "dynamic_bsize", 2, &windows->size));
    TF_RETURN_IF_ERROR(numbers(ctx, "dynamic_bstride", 2, &windows->stride));
    return numbers(ctx, "dynamic_boffset", 2, &windows->offset);
}

tensorflow::AllocatorAttributes on_host() {
    tensorflow::AllocatorAttributes attributes;
    attributes.set_on_host(true);
    return attributes;
}

/* A copy of a tensor between the device's memory and the host's, which is the same tensor where they are one. */
template <eqc::Place device>
absl::Status to_host(OpKernelContext* ctx, const Tensor& tensor, Tensor* copy) {
    *copy = tensor;
    if (device == eqc::CPU) return absl::OkStatus();
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensor.dtype(), tensor.shape(), copy, on_host()));
    return ctx->op_device_context()->CopyDeviceTensorToCPUSync(
        &tensor, "eqconv", static_cast<tensorflow::Device*>(ctx->device()), copy);
}

template <eqc::Place device>
absl::Status to_device(OpKernelContext* ctx, const Tensor& tensor, Tensor* copy) {
    *copy = tensor;
    if (device == eqc::CPU) return absl::OkStatus();
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensor.dtype(), tensor.shape(), copy));
    return ctx->op_device_context()->CopyCPUTensorToDeviceSync(
        &tensor, static_cast<tensorflow::Device*>(ctx->device()), copy);
}

template <typename T, eqc::Place device>
class ReduceMask : public MaskKernel<T, device> {
  public:
    explicit ReduceMask(OpKernelConstruction* ctx) : MaskKernel<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("tol", &tolerance_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("avgpool", &average_));
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(eqc::mask_blocks));
        const Tensor* mask;
        TF_RETURN_IF_ERROR(ctx->input("mask", &mask));
        const int32_t* grid;
        TF_RETURN_IF_ERROR(numbers(ctx, "dynamic_bcount", 2, &grid));
        Windows windows;
        TF_RETURN_IF_ERROR(windows_of(ctx, &windows));
        eqc_mask a = {};
        a.flags = EQC_BS_FIRST | (average_ ? EQC_BS_AVERAGE : 0);
        a.tolerance = tolerance_;
        int64_t capacity = 0;
        TF_RETURN_IF_ERROR(this->fill(*mask, grid, windows, &a, &capacity));
        Tensor index, count, index_here, count_here;
        TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_INT32, TensorShape({capacity, 3}), &index));
        TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_INT32, TensorShape({1}), &count));
        a.index = static_cast<int32_t*>(memory_of(index));
        a.count = static_cast<int32_t*>(memory_of(count));
        TF_RETURN_IF_ERROR(this->run(ctx, eqc::mask_blocks, a));
        TF_RETURN_IF_ERROR(to_host<device>(ctx, count, &count_here));
        TF_RETURN_IF_ERROR(to_host<device>(ctx, index, &index_here));
        const int32_t rows = *static_cast<const int32_t*>(memory_of(count_here));
        ctx->set_output(1, count_here);
        Tensor* list;
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, TensorShape({rows, 3}), &list));
        return narrow(static_cast<const int32_t*>(memory_of(index_here)), int64_t(3) * rows,
                      static_cast<int16_t*>(memory_of(*list)));
    }

    static absl::Status narrow(const int32_t* values, int64_t count, int16_t* made) {
        for (int64_t k = 0; k < count; ++k) {
            if (values[k] > most_int16)
                return absl::InvalidArgumentError("active_block_indices would have " + std::to_string(values[k]) +
                                                  ": int16 holds at most " + std::to_string(most_int16));
            made[k] = int16_t(values[k]);
        }
        return absl::OkStatus();
    }

    float tolerance_ = 0;
    bool average_ = false;
};

/* What gather and scatter have in common. */
template <typename T, eqc::Place device>
class SparseBlocks : public BlockKernel<T, device> {
  public:
    explicit SparseBlocks(OpKernelConstruction* ctx) : BlockKernel<T, device>(ctx) {
        bool transpose;
        OP_REQUIRES_OK(ctx, ctx->GetAttr("transpose", &transpose));
        flags_ = transpose ? EQC_BS_TRANSPOSE : 0;
    }

  protected:
    /* The first bin_counts[0] rows of the list, in `index` as long as it is needed; `a` knows the images. */
    static absl::Status rows(OpKernelContext* ctx, eqc_blocks* a, Tensor* index) {
        const Tensor* list;
        TF_RETURN_IF_ERROR(ctx->input("active_block_indices", &list));
        if (list->dims() != 2 || list->dim_size(1) != 3) return wrong_shape("active_block_indices", *list, "[B,3]");
        const int32_t* count;
        TF_RETURN_IF_ERROR(numbers(ctx, "bin_counts", 1, &count));
        if (*count < 0 || *count > list->dim_size(0))
            return absl::InvalidArgumentError("bin_counts is " + std::to_string(*count) +
                                              " but active_block_indices has " +
                                              std::to_string(list->dim_size(0)) + " rows");
        a->rows = *count;
        Tensor wide;
        TF_RETURN_IF_ERROR(
            ctx->allocate_temp(tensorflow::DT_INT32, TensorShape({a->rows, 3}), &wide, on_host()));
        const auto* values = static_cast<const int16_t*>(memory_of(*list));
        auto* made = static_cast<int32_t*>(memory_of(wide));
        for (int64_t k = 0; k < 3 * a->rows; ++k) made[k] = values[k];
        TF_RETURN_IF_ERROR(eqc::check_rows(made, a->rows, a->images));
        TF_RETURN_IF_ERROR(to_device<device>(ctx, wide, index));
        a->index = static_cast<const int32_t*>(memory_of(*index));
        return absl::OkStatus();
    }

    int32_t flags_ = 0;
};

template <typename T, eqc::Place device>
class SparseGather : public SparseBlocks<T, device> {
  public:
    explicit SparseGather(OpKernelConstruction* ctx) : SparseBlocks<T, device>(ctx) {
        bool owned;
        OP_REQUIRES_OK(ctx, ctx->GetAttr("owned", &owned));
        if (owned) this->flags_ |= EQC_BS_OWNED;
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(eqc::block_gather));
        const Tensor* x;
        TF_RETURN_IF_ERROR(ctx->input("x", &x));
        Windows windows;
        TF_RETURN_IF_ERROR(windows_of(ctx, &windows));
        eqc_blocks a = {};
        a.flags = this->flags_;
        TF_RETURN_IF_ERROR(this->set_image("x", x->shape(), windows, &a));
        Tensor index;
        TF_RETURN_IF_ERROR(this->rows(ctx, &a, &index));
        TensorShape shape;
        TF_RETURN_IF_ERROR(this->stack(a, &shape));
        Tensor* y;
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &y));
        a.x = memory_of(*x);
        a.blocks = this->fresh(*y);
        return this->run(ctx, eqc::block_gather, a);
    }
};

/* Where the images are that blocks are scattered to. */
enum class Base { tensor, resource, reference };

template <typename T, eqc::Place device, Base kind>
class SparseScatter : public SparseBlocks<T, device> {
  public:
    explicit SparseScatter(OpKernelConstruction* ctx) : SparseBlocks<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("add", &add_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("atomic", &atomic_));
        if (add_) this->flags_ |= EQC_BS_ADD;
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(eqc::block_scatter));
        if (kind == Base::tensor) {
            const Tensor* base;
            TF_RETURN_IF_ERROR(ctx->input("ybase", &base));
            Tensor* y;
            TF_RETURN_IF_ERROR(ctx->forward_input_or_allocate_output({"ybase"}, "y", base->shape(), &y));
            return scatter(ctx, *base, y);
        }
        if (kind == Base::reference) {
            tensorflow::mutex_lock lock(*ctx->input_ref_mutex(base_number));
            Tensor base = ctx->mutable_input(base_number, true);
            if (!base.IsInitialized()) return absl::FailedPreconditionError("the variable is not initialised");
            TF_RETURN_IF_ERROR(scatter(ctx, base, &base));
            ctx->forward_ref_input_to_ref_output(base_number, 0);
            return absl::OkStatus();
        }
        return eqc::write_variable<T>(ctx, "ybase", [&](const Tensor& base, Tensor* y) {
            TF_RETURN_IF_ERROR(scatter(ctx, base, y));
            ctx->set_output(0, *y);
            return absl::OkStatus();
        });
    }

    absl::Status scatter(OpKernelContext* ctx, const Tensor& base, Tensor* y) const {
        const Tensor* blocks;
        TF_RETURN_IF_ERROR(ctx->input("x", &blocks));
        Windows windows;
        TF_RETURN_IF_ERROR(windows_of(ctx, &windows));
        eqc_blocks a = {};
        a.flags = this->flags_;
        TF_RETURN_IF_ERROR(this->set_image("ybase", base.shape(), windows, &a));
        if (add_ && !atomic_ && windows.overlap())
            return absl::InvalidArgumentError(
                "add=True, atomic=False needs windows that do not overlap, but bstride is below bsize: "
                "give atomic=True to sum where they overlap");
        Tensor index;
        TF_RETURN_IF_ERROR(this->rows(ctx, &a, &index));
        // The list may be longer than what counts, and the stack with it.
        Tensor stack = *blocks;
        if (stack.dims() == 4 && stack.dim_size(0) > a.rows) stack = stack.Slice(0, a.rows);
        TF_RETURN_IF_ERROR(this->check_stack(stack, a));
        a.blocks_in = memory_of(stack);
        a.base = memory_of(base);
        a.y = memory_of(*y);
        return this->run(ctx, eqc::block_scatter, a);
    }

    static constexpr int base_number = 3;

    bool add_ = false;
    bool atomic_ = false;
};

absl::Status reduce_mask_shape(InferenceContext* c) {
    c->set_output(0, c->Matrix(c->UnknownDim(), 3));
    c->set_output(1, c->Vector(1));
    return absl::OkStatus();
}

absl::Status gather_shape(InferenceContext* c) {
    ShapeHandle x;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
    bool transpose;
    TF_RETURN_IF_ERROR(c->GetAttr("transpose", &transpose));
    ShapeHandle size;
    TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(3, &size));
    TF_RETURN_IF_ERROR(c->WithRank(size, 2, &size));
    const auto rows = c->UnknownDim(), channels = c->Dim(x, 3);
    c->set_output(0, transpose ? c->MakeShape({rows, channels, c->Dim(size, 0), c->Dim(size, 1)})
                               : c->MakeShape({rows, c->Dim(size, 0), c->Dim(size, 1), channels}));
    return absl::OkStatus();
}

absl::Status base_shape(InferenceContext* c) {
    ShapeHandle y;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 4, &y));
    c->set_output(0, y);
    return absl::OkStatus();
}

absl::Status variable_shape(InferenceContext* c) {
    const auto* known = c->input_handle_shapes_and_types(3);
    if (known != nullptr && !known->empty()) {
        c->set_output(0, (*known)[0].shape);
    } else {
        c->set_output(0, c->UnknownShapeOfRank(4));
    }
    return absl::OkStatus();
}

}  // namespace

#define EQC_WINDOWS .Input("dynamic_bsize: int32").Input("dynamic_bstride: int32").Input("dynamic_boffset: int32")

REGISTER_OP("ReduceMask")
    .Input("mask: T")
    .Input("dynamic_bcount: int32")
    EQC_WINDOWS
    .Output("active_block_indices: int16")
    .Output("bin_counts: int32")
    .Attr("T: {float, double}")
    .Attr("tol: float")
    .Attr("avgpool: bool = false")
    .Attr("core: string = ''")
    .SetShapeFn(reduce_mask_shape);

REGISTER_OP("SparseGather")
    .Input("x: T")
    .Input("bin_counts: int32")
    .Input("active_block_indices: int16")
    EQC_WINDOWS
    .Output("y: T")
    .Attr("T: {float, double}")
    .Attr("transpose: bool = false")
    .Attr("owned: bool = false")
    .Attr("core: string = ''")
    .SetShapeFn(gather_shape);

#define EQC_SCATTER(name, base, result, shape)  \
    REGISTER_OP(name)                           \
        .Input("x: T")                          \
        .Input("bin_counts: int32")             \
        .Input("active_block_indices: int16")   \
        .Input(base)                            \
        EQC_WINDOWS                             \
        .Output(result)                         \
        .Attr("T: {float, double}")             \
        .Attr("add: bool")                      \
        .Attr("atomic: bool = false")           \
        .Attr("transpose: bool = false")        \
        .Attr("core: string = ''")              \
        .SetShapeFn(shape)

EQC_SCATTER("SparseScatter", "ybase: T", "y: T", base_shape);
EQC_SCATTER("SparseScatterVar", "ybase: resource", "y: T", variable_shape).SetIsStateful();
/* The same for the variables of TensorFlow 1, which are references. */
EQC_SCATTER("SparseScatterRefVar", "ybase: Ref(T)", "y: Ref(T)", base_shape).SetIsStateful();

#define EQC_KERNEL(name, Kernel, ...)                                                                           \
    REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU).TypeConstraint<float>("T"),               \
                            Kernel<float, eqc::CPU __VA_ARGS__>);                                               \
    REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU).TypeConstraint<double>("T"),              \
                            Kernel<double, eqc::CPU __VA_ARGS__>);                                              \
    REGISTER_KERNEL_BUILDER(EQC_ON_GPU(name).TypeConstraint<float>("T"), Kernel<float, eqc::CUDA __VA_ARGS__>); \
    REGISTER_KERNEL_BUILDER(EQC_ON_GPU(name).TypeConstraint<double>("T"), Kernel<double, eqc::CUDA __VA_ARGS__>);

#define EQC_ON_GPU(name)                        \
    Name(name)                                  \
        .Device(tensorflow::DEVICE_GPU)         \
        .HostMemory("dynamic_bsize")            \
        .HostMemory("dynamic_bstride")          \
        .HostMemory("dynamic_boffset")          \
        .HostMemory("active_block_indices")     \
        .HostMemory("bin_counts") EQC_MORE_HOST

#define EQC_MORE_HOST .HostMemory("dynamic_bcount")
EQC_KERNEL("ReduceMask", ReduceMask)
#undef EQC_MORE_HOST
#define EQC_MORE_HOST
EQC_KERNEL("SparseGather", SparseGather)
EQC_KERNEL("SparseScatter", SparseScatter, , Base::tensor)
EQC_KERNEL("SparseScatterRefVar", SparseScatter, , Base::reference)
#undef EQC_MORE_HOST
#define EQC_MORE_HOST .HostMemory("ybase")
EQC_KERNEL("SparseScatterVar", SparseScatter, , Base::resource)
