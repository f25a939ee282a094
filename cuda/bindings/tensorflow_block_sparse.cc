/* Spatially sparse convolution as TensorFlow operators, one for each operation of the contract.
 *
 * A list is an array with a `count` [1] of the entries that count, or [0] when all do. On the CPU, results of an
 * unknown length have exactly that length; on a GPU they have room for everything, so that nobody waits for the number.
 * Gradients are registered in Python.
 */
#include "tensorflow_block_sparse.h"

#include "tensorflow_variable.h"

namespace {

using eqc::all_within;
using eqc::BlockKernel;
using eqc::CoreKernel;
using eqc::DimensionHandle;
using eqc::InferenceContext;
using eqc::MaskKernel;
using eqc::memory_of;
using eqc::most_positions;
using eqc::numbers;
using eqc::OpKernelConstruction;
using eqc::OpKernelContext;
using eqc::positions;
using eqc::ShapeHandle;
using eqc::Tensor;
using eqc::TensorShape;
using eqc::Windows;
using eqc::wrong_shape;

const eqc::Operation<eqc_sites> site_forward("site_forward");
const eqc::Operation<eqc_sites> site_backward("site_backward");
const eqc::Operation<eqc_neighbours> site_outputs("site_outputs");
const eqc::Operation<eqc_neighbours> site_table("site_table");
const eqc::Operation<eqc_residual> residual_forward("residual_forward");

/* The attributes of every operator. */
class Attributes {
  public:
    explicit Attributes(OpKernelConstruction* ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("flags", &flags));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("threads", &threads));
    }

    template <typename Arguments>
    void set(Arguments* a) const {
        a->flags = flags;
        a->threads = threads;
    }

  private:
    int32_t flags = 0;
    int32_t threads = 0;
};

/* The input `window`: size, stride and offset. */
absl::Status windows_of(OpKernelContext* ctx, Windows* windows) {
    const int32_t* values;
    TF_RETURN_IF_ERROR(numbers(ctx, "window", 6, &values));
    *windows = {values, values + 2, values + 4};
    return absl::OkStatus();
}

/* Makes a list of unknown length and how many of its entries count: `fill` is given the memory of both. */
template <eqc::Place device, typename Fill>
absl::Status make_list(OpKernelContext* ctx, const TensorShape& capacity, Fill fill) {
    Tensor *list_output, *count_output;
    TF_RETURN_IF_ERROR(ctx->allocate_output(1, TensorShape({1}), &count_output));
    auto* count = static_cast<int32_t*>(memory_of(*count_output));
    if (device == eqc::CUDA) {
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, capacity, &list_output));
        return fill(static_cast<int32_t*>(memory_of(*list_output)), count);
    }
    Tensor list;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_INT32, capacity, &list));
    TF_RETURN_IF_ERROR(fill(static_cast<int32_t*>(memory_of(list)), count));
    // A part that is much smaller than the whole is copied, so as not to hold on to the whole.
    const Tensor part = list.Slice(0, *count);
    if (list.TotalBytes() < 4096 || part.TotalBytes() > list.TotalBytes() / 2) {
        ctx->set_output(0, part);
        return absl::OkStatus();
    }
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, part.shape(), &list_output));
    std::memcpy(memory_of(*list_output), memory_of(part), part.TotalBytes());
    return absl::OkStatus();
}

template <typename T, eqc::Place device, bool blocks>
class Mask : public MaskKernel<T, device> {
  public:
    explicit Mask(OpKernelConstruction* ctx) : MaskKernel<T, device>(ctx), attributes_(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("tolerance", &tolerance_));
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        const auto& operation = blocks ? eqc::mask_blocks : eqc::mask_pixels;
        TF_RETURN_IF_ERROR(this->present(operation));
        const Tensor* mask;
        TF_RETURN_IF_ERROR(ctx->input("mask", &mask));
        const int32_t* grid;
        TF_RETURN_IF_ERROR(numbers(ctx, "grid", 2, &grid));
        Windows windows;
        TF_RETURN_IF_ERROR(windows_of(ctx, &windows));
        eqc_mask a = {};
        attributes_.set(&a);
        a.tolerance = tolerance_;
        int64_t capacity;
        TF_RETURN_IF_ERROR(this->fill(*mask, grid, windows, &a, &capacity));
        const TensorShape shape = blocks ? TensorShape({capacity, 3}) : TensorShape({capacity});
        return make_list<device>(ctx, shape, [&](int32_t* index, int32_t* count) {
            a.index = index;
            a.count = count;
            return this->run(ctx, operation, a);
        });
    }

    Attributes attributes_;
    float tolerance_ = 0;
};

/* What the operators on a list of blocks have in common. */
template <typename T, eqc::Place device>
class Blocks : public BlockKernel<T, device> {
  public:
    explicit Blocks(OpKernelConstruction* ctx) : BlockKernel<T, device>(ctx), attributes_(ctx) {}

    void Compute(OpKernelContext* ctx) override {
        eqc_blocks a = {};
        attributes_.set(&a);
        OP_REQUIRES_OK(ctx, compute(ctx, &a));
    }

  protected:
    virtual absl::Status compute(OpKernelContext* ctx, eqc_blocks* a) const = 0;

    /* The list of blocks; `a` knows the images. */
    static absl::Status rows(OpKernelContext* ctx, eqc_blocks* a) {
        const Tensor* index;
        TF_RETURN_IF_ERROR(ctx->input("index", &index));
        if (index->dims() != 2 || index->dim_size(1) != 3) return wrong_shape("index", *index, "[B,3]");
        a->rows = index->dim_size(0);
        a->index = static_cast<const int32_t*>(memory_of(*index));
        int64_t count;
        TF_RETURN_IF_ERROR(eqc::counted<device>(ctx, a->rows, &a->count, &count));
        return device == eqc::CUDA ? absl::OkStatus() : eqc::check_rows(a->index, count, a->images);
    }

    /* Windows over an image of this shape, and the list of them. */
    absl::Status onto(OpKernelContext* ctx, const char* name, const TensorShape& shape, eqc_blocks* a) const {
        Windows windows;
        TF_RETURN_IF_ERROR(windows_of(ctx, &windows));
        TF_RETURN_IF_ERROR(this->set_image(name, shape, windows, a));
        return rows(ctx, a);
    }

    /* The stack that is scattered; `a` knows everything else. */
    absl::Status blocks(OpKernelContext* ctx, eqc_blocks* a) const {
        const Tensor* stack;
        TF_RETURN_IF_ERROR(ctx->input("blocks", &stack));
        TF_RETURN_IF_ERROR(this->check_stack(*stack, *a));
        a->blocks_in = memory_of(*stack);
        return absl::OkStatus();
    }

    /* The input `size`: [N, H, W, C], or [N, H, W]. */
    static absl::Status size(OpKernelContext* ctx, int64_t length, TensorShape* shape) {
        const int32_t* values;
        TF_RETURN_IF_ERROR(numbers(ctx, "size", length, &values));
        return TensorShape::BuildTensorShape(
            {values[0], values[1], values[2], length == 4 ? values[3] : int32_t(1)}, shape);
    }

  private:
    Attributes attributes_;
};

template <typename T, eqc::Place device>
class BlockGather : public Blocks<T, device> {
  public:
    using Blocks<T, device>::Blocks;

  protected:
    absl::Status compute(OpKernelContext* ctx, eqc_blocks* a) const override {
        TF_RETURN_IF_ERROR(this->present(eqc::block_gather));
        const Tensor* x;
        TF_RETURN_IF_ERROR(ctx->input("x", &x));
        TF_RETURN_IF_ERROR(this->onto(ctx, "x", x->shape(), a));
        TensorShape shape;
        TF_RETURN_IF_ERROR(this->stack(*a, &shape));
        Tensor* blocks;
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &blocks));
        a->x = memory_of(*x);
        a->blocks = this->fresh(*blocks);
        return this->run(ctx, eqc::block_gather, *a);
    }
};

/* Inputs that are not wanted are of any size: blocks with `blank` (all 0), base with `zeros`. */
template <typename T, eqc::Place device>
class BlockScatter : public Blocks<T, device> {
  public:
    explicit BlockScatter(OpKernelConstruction* ctx) : Blocks<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("blank", &blank_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("zeros", &zeros_));
    }

  protected:
    absl::Status compute(OpKernelContext* ctx, eqc_blocks* a) const override {
        TF_RETURN_IF_ERROR(this->present(eqc::block_scatter));
        TensorShape shape;
        TF_RETURN_IF_ERROR(this->size(ctx, 4, &shape));
        TF_RETURN_IF_ERROR(this->onto(ctx, "size", shape, a));
        if (!blank_) TF_RETURN_IF_ERROR(this->blocks(ctx, a));
        const Tensor* base;
        TF_RETURN_IF_ERROR(ctx->input("base", &base));
        Tensor* y;
        if (zeros_) {
            TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &y));
        } else {
            if (base->shape() != shape) return wrong_shape("ybase", *base, shape.DebugString());
            a->base = memory_of(*base);
            TF_RETURN_IF_ERROR(ctx->forward_input_or_allocate_output({"base"}, "y", shape, &y));
        }
        a->y = this->fresh(*y);
        return this->run(ctx, eqc::block_scatter, *a);
    }

  private:
    bool blank_ = false;
    bool zeros_ = false;
};

/* The same, written into a variable. */
template <typename T, eqc::Place device>
class BlockScatterVar : public Blocks<T, device> {
  public:
    using Blocks<T, device>::Blocks;

  protected:
    absl::Status compute(OpKernelContext* ctx, eqc_blocks* a) const override {
        TF_RETURN_IF_ERROR(this->present(eqc::block_scatter));
        return eqc::write_variable<T>(ctx, "variable", [&](const Tensor& base, Tensor* y) {
            TF_RETURN_IF_ERROR(this->onto(ctx, "variable", base.shape(), a));
            TF_RETURN_IF_ERROR(this->blocks(ctx, a));
            a->base = memory_of(base);
            a->y = memory_of(*y);
            return this->run(ctx, eqc::block_scatter, *a);
        });
    }
};

template <eqc::Place device>
class BlockPixels : public Blocks<float, device> {
  public:
    using Blocks<float, device>::Blocks;

  protected:
    absl::Status compute(OpKernelContext* ctx, eqc_blocks* a) const override {
        TF_RETURN_IF_ERROR(this->present(eqc::block_pixels));
        TensorShape shape;
        TF_RETURN_IF_ERROR(this->size(ctx, 3, &shape));
        TF_RETURN_IF_ERROR(this->onto(ctx, "size", shape, a));
        return make_list<device>(ctx, TensorShape({shape.num_elements()}), [&](int32_t* pixels, int32_t* count) {
            a->pixels = pixels;
            a->pixel_count = count;
            return this->run(ctx, eqc::block_pixels, *a);
        });
    }
};

// Convolutions at lists of sites.

/* An operator that writes some rows of an output, which starts as a base. */
template <typename T, eqc::Place device>
class RowsKernel : public CoreKernel<T, device> {
  public:
    using CoreKernel<T, device>::CoreKernel;

  protected:
    /* y [rows, columns] = base, or 0 when it is NULL; the scatter of no blocks does it in every place. */
    absl::Status start(OpKernelContext* ctx, const void* base, void* y, int64_t rows, int64_t columns,
                       int32_t threads) const {
        if (base == y) return absl::OkStatus();
        TF_RETURN_IF_ERROR(this->present(eqc::block_scatter));
        static const int32_t no_index[3] = {};
        eqc_blocks a = {};
        a.images = a.height = 1;
        a.width = rows;
        a.channels = columns;
        a.window_height = a.window_width = a.stride_height = a.stride_width = 1;
        a.threads = threads;
        a.index = no_index;
        a.base = base;
        a.y = y;
        return this->run(ctx, eqc::block_scatter, a);
    }
};

/* out_height, out_width, stride, pad in front and dilation of the image form: the input `geometry`. */
constexpr int64_t geometry_length = 8;

enum SiteGradient { DX = 1, DW = 2, DB = 4 };

template <typename T, eqc::Place device>
class Sites : public RowsKernel<T, device> {
  public:
    explicit Sites(OpKernelConstruction* ctx) : RowsKernel<T, device>(ctx), attributes_(ctx) {
        if (ctx->HasAttr("tabled")) OP_REQUIRES_OK(ctx, ctx->GetAttr("tabled", &tabled_));
    }

  protected:
    /* What forward and backward have in common: everything but bias, y and the gradients. */
    absl::Status fill(OpKernelContext* ctx, eqc_sites* a, TensorShape* y) const {
        attributes_.set(a);
        const Tensor *x, *w;
        TF_RETURN_IF_ERROR(ctx->input("x", &x));
        TF_RETURN_IF_ERROR(ctx->input("w", &w));
        if (w->dims() < 3) return wrong_shape("w", *w, "[taps..., C, K]");
        a->channels = w->dim_size(w->dims() - 2);
        a->filters = w->dim_size(w->dims() - 1);
        a->taps = 1;
        for (int axis = 0; axis < w->dims() - 2; ++axis) a->taps *= w->dim_size(axis);
        if (a->taps < 1) return wrong_shape("w", *w, "at least one tap");
        if (x->dims() != (tabled_ ? 2 : 4) || x->dim_size(x->dims() - 1) != a->channels)
            return wrong_shape("x", *x, tabled_ ? "[rows, C] with the C of w" : "[N,H,W,C] with the C of w");
        a->in_rows = tabled_ ? x->dim_size(0) : positions({x->dim_size(0), x->dim_size(1), x->dim_size(2)});
        if (a->in_rows >= most_positions) return wrong_shape("x", *x, "less than 2^31 rows or pixels");
        TF_RETURN_IF_ERROR(tabled_ ? by_table(ctx, a) : by_image(ctx, *x, *w, a));
        a->x = memory_of(*x);
        a->w = memory_of(*w);
        if (tabled_) return TensorShape::BuildTensorShape({a->out_rows, a->filters}, y);
        return TensorShape::BuildTensorShape({a->images, a->out_height, a->out_width, a->filters}, y);
    }

    bool tabled_ = false;

  private:
    static absl::Status by_image(OpKernelContext* ctx, const Tensor& x, const Tensor& w, eqc_sites* a) {
        if (w.dims() != 4) return wrong_shape("w", w, "[kh,kw,C,K]");
        const int32_t* geometry;
        TF_RETURN_IF_ERROR(numbers(ctx, "geometry", geometry_length, &geometry));
        for (int k : {2, 3, 6, 7})
            if (geometry[k] < 1) return absl::InvalidArgumentError("strides and dilations must be at least 1");
        if (geometry[0] < 0 || geometry[1] < 0) return absl::InvalidArgumentError("the output has a negative size");
        a->images = x.dim_size(0);
        a->height = x.dim_size(1);
        a->width = x.dim_size(2);
        a->kernel_height = w.dim_size(0);
        a->kernel_width = w.dim_size(1);
        a->out_height = geometry[0];
        a->out_width = geometry[1];
        a->stride_height = geometry[2];
        a->stride_width = geometry[3];
        a->pad_height = geometry[4];
        a->pad_width = geometry[5];
        a->dilation_height = geometry[6];
        a->dilation_width = geometry[7];
        a->out_rows = positions({a->images, a->out_height, a->out_width});
        if (a->out_rows == most_positions) return absl::InvalidArgumentError("the output has 2^31 pixels or more");
        const Tensor* site;
        TF_RETURN_IF_ERROR(ctx->input("site", &site));
        if (site->dims() != 1) return wrong_shape("site", *site, "[P]");
        a->sites = site->dim_size(0);
        a->site = static_cast<const int32_t*>(memory_of(*site));
        int64_t count;
        TF_RETURN_IF_ERROR(eqc::counted<device>(ctx, a->sites, &a->count, &count));
        if (device == eqc::CPU && !all_within(a->site, count, 0, a->out_rows))
            return absl::InvalidArgumentError("a listed pixel is outside [0, " + std::to_string(a->out_rows) + ")");
        return absl::OkStatus();
    }

    static absl::Status by_table(OpKernelContext* ctx, eqc_sites* a) {
        const Tensor* table;
        TF_RETURN_IF_ERROR(ctx->input("table", &table));
        if (table->dims() != 2 || table->dim_size(1) != a->taps)
            return wrong_shape("table", *table, "[sites, " + std::to_string(a->taps) + "], as many as w has taps");
        a->sites = a->out_rows = table->dim_size(0);
        if (a->sites >= most_positions) return wrong_shape("table", *table, "less than 2^31 sites");
        a->table = static_cast<const int32_t*>(memory_of(*table));
        int64_t count;
        TF_RETURN_IF_ERROR(eqc::counted<device>(ctx, a->sites, &a->count, &count));
        if (device == eqc::CPU && !all_within(a->table, count * a->taps, -1, a->in_rows))
            return absl::InvalidArgumentError("table names a row outside [0, " + std::to_string(a->in_rows) + ")");
        return absl::OkStatus();
    }

    Attributes attributes_;
};

/* Into an output or, with `variable`, at the sites of a variable. */
template <typename T, eqc::Place device, bool variable>
class SiteForward : public Sites<T, device> {
  public:
    explicit SiteForward(OpKernelConstruction* ctx) : Sites<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("biased", &biased_));
        if (!variable) OP_REQUIRES_OK(ctx, ctx->GetAttr("based", &based_));
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(site_forward));
        eqc_sites a = {};
        TensorShape shape;
        TF_RETURN_IF_ERROR(this->fill(ctx, &a, &shape));
        if (biased_) TF_RETURN_IF_ERROR((this->template input<1>(ctx, "bias", {a.filters}, &a.bias)));
        if constexpr (variable) {
            return eqc::write_variable<T>(ctx, "variable", [&](const Tensor& base, Tensor* y) {
                if (base.shape() != shape) return wrong_shape("variable", base, shape.DebugString());
                a.y = memory_of(*y);
                TF_RETURN_IF_ERROR(this->start(ctx, memory_of(base), a.y, a.out_rows, a.filters, a.threads));
                return this->run(ctx, site_forward, a);
            });
        }
        const Tensor* base;
        TF_RETURN_IF_ERROR(ctx->input("base", &base));
        if (based_ && base->shape() != shape) return wrong_shape("base", *base, shape.DebugString());
        Tensor* y;
        if (based_) {
            TF_RETURN_IF_ERROR(ctx->forward_input_or_allocate_output({"base"}, "y", shape, &y));
        } else {
            TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &y));
        }
        a.y = this->fresh(*y);
        // Every row of a whole table is written.
        if (!this->tabled_ || a.count != nullptr)
            TF_RETURN_IF_ERROR(
                this->start(ctx, based_ ? memory_of(*base) : nullptr, a.y, a.out_rows, a.filters, a.threads));
        return this->run(ctx, site_forward, a);
    }

    bool biased_ = false;
    bool based_ = false;
};

template <typename T, eqc::Place device>
class SiteBackward : public Sites<T, device> {
  public:
    explicit SiteBackward(OpKernelConstruction* ctx) : Sites<T, device>(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("wanted", &wanted_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("inverted", &inverted_));
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(site_backward));
        eqc_sites a = {};
        TensorShape shape;
        TF_RETURN_IF_ERROR(this->fill(ctx, &a, &shape));
        const Tensor *x, *w, *dy, *y;
        TF_RETURN_IF_ERROR(ctx->input("x", &x));
        TF_RETURN_IF_ERROR(ctx->input("w", &w));
        TF_RETURN_IF_ERROR(ctx->input("dy", &dy));
        TF_RETURN_IF_ERROR(ctx->input("y", &y));
        if (dy->shape() != shape) return wrong_shape("dy", *dy, shape.DebugString());
        a.dy = memory_of(*dy);
        if (a.flags & EQC_BS_RELU) {
            if (y->shape() != shape) return wrong_shape("y", *y, shape.DebugString());
            a.y = memory_of(*y);
        }
        if (inverted_) TF_RETURN_IF_ERROR(inverse(ctx, &a));
        const TensorShape shapes[] = {x->shape(), w->shape(), TensorShape({a.filters})};
        void** const places[] = {&a.dx, &a.dw, &a.db};
        for (int k = 0; k < 3; ++k) {
            const bool want = wanted_ & (1 << k);
            Tensor* made;
            TF_RETURN_IF_ERROR(ctx->allocate_output(k, want ? shapes[k] : TensorShape({0}), &made));
            if (want) *places[k] = this->fresh(*made);
        }
        return this->run(ctx, site_backward, a);
    }

    absl::Status inverse(OpKernelContext* ctx, eqc_sites* a) const {
        if (!this->tabled_) return absl::InvalidArgumentError("inverted is true but tabled is not");
        const Tensor* inverse;
        TF_RETURN_IF_ERROR(ctx->input("inverse", &inverse));
        const TensorShape shape({a->in_rows, a->taps});
        if (inverse->shape() != shape) return wrong_shape("inverse", *inverse, shape.DebugString());
        a->inverse = static_cast<const int32_t*>(memory_of(*inverse));
        if (device == eqc::CPU && !all_within(a->inverse, a->in_rows * a->taps, -1, a->sites))
            return absl::InvalidArgumentError("inverse names an entry outside [0, " + std::to_string(a->sites) + ")");
        return absl::OkStatus();
    }

    int32_t wanted_ = 0;
    bool inverted_ = false;
};

// Neighbours of sites.

/* Number of groups of one number an axis in `geometry`: extent, out_extent, kernel, stride, pad, dilation. */
constexpr int64_t axis_groups = 6;

template <eqc::Place device>
class Neighbours : public CoreKernel<float, device> {
  public:
    explicit Neighbours(OpKernelConstruction* ctx) : CoreKernel<float, device>(ctx), attributes_(ctx) {}

  protected:
    absl::Status fill(OpKernelContext* ctx, eqc_neighbours* a, int64_t* taps) const {
        attributes_.set(a);
        const Tensor* coords;
        TF_RETURN_IF_ERROR(ctx->input("coords", &coords));
        if (coords->dims() != 2 || coords->dim_size(1) < 2 || coords->dim_size(1) > 5)
            return wrong_shape("coords", *coords, "[M, 1 + axes] with 1 to 4 axes");
        a->axes = coords->dim_size(1) - 1;
        a->rows = coords->dim_size(0);
        const int32_t* geometry;
        TF_RETURN_IF_ERROR(numbers(ctx, "geometry", 1 + axis_groups * a->axes, &geometry));
        a->batch = geometry[0];
        int64_t* const fields[axis_groups][4] = {
            {&a->extent_0, &a->extent_1, &a->extent_2, &a->extent_3},
            {&a->out_extent_0, &a->out_extent_1, &a->out_extent_2, &a->out_extent_3},
            {&a->kernel_0, &a->kernel_1, &a->kernel_2, &a->kernel_3},
            {&a->stride_0, &a->stride_1, &a->stride_2, &a->stride_3},
            {&a->pad_0, &a->pad_1, &a->pad_2, &a->pad_3},
            {&a->dilation_0, &a->dilation_1, &a->dilation_2, &a->dilation_3}};
        const int32_t least[axis_groups] = {0, 0, 1, 1, INT32_MIN, 1};
        for (int group = 0; group < axis_groups; ++group)
            for (int axis = 0; axis < 4; ++axis) {
                const int32_t value = axis < a->axes ? geometry[1 + group * a->axes + axis] : int32_t(group != 4);
                if (value < least[group] || a->batch < 0)
                    return absl::InvalidArgumentError("a number of the geometry is below what it can be");
                *fields[group][axis] = value;
            }
        *taps = positions({a->kernel_0, a->kernel_1, a->kernel_2, a->kernel_3});
        a->coords = static_cast<const int32_t*>(memory_of(*coords));
        int64_t count;
        TF_RETURN_IF_ERROR(eqc::counted<device>(ctx, a->rows, &a->count, &count));
        const int64_t extents[] = {a->batch, a->extent_0, a->extent_1, a->extent_2, a->extent_3};
        return inside("coords", *coords, count, extents);
    }

    /* Whether coordinates are in range, where the host can read them. */
    static absl::Status inside(const char* name, const Tensor& coords, int64_t count, const int64_t* extents) {
        if (device == eqc::CUDA) return absl::OkStatus();
        const auto* values = static_cast<const int32_t*>(memory_of(coords));
        const int64_t columns = coords.dim_size(1);
        for (int64_t k = 0; k < count * columns; ++k)
            if (values[k] < 0 || values[k] >= extents[k % columns])
                return absl::InvalidArgumentError(std::string(name) + "[" + std::to_string(k / columns) + ", " +
                                                  std::to_string(k % columns) + "] is " + std::to_string(values[k]) +
                                                  ": it must be in [0, " + std::to_string(extents[k % columns]) + ")");
        return absl::OkStatus();
    }

  private:
    Attributes attributes_;
};

template <eqc::Place device>
class SiteOutputs : public Neighbours<device> {
  public:
    using Neighbours<device>::Neighbours;

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(site_outputs));
        eqc_neighbours a = {};
        int64_t taps;
        TF_RETURN_IF_ERROR(this->fill(ctx, &a, &taps));
        a.out_rows = std::min(
            positions({a.rows, taps}),
            std::min(positions({a.batch, a.out_extent_0, positions({a.out_extent_1, a.out_extent_2, a.out_extent_3})}),
                     most_positions - 1));
        return make_list<device>(ctx, TensorShape({a.out_rows, 1 + a.axes}), [&](int32_t* coords, int32_t* count) {
            a.made_coords = coords;
            a.made_count = count;
            return this->run(ctx, site_outputs, a);
        });
    }
};

template <eqc::Place device>
class SiteTable : public Neighbours<device> {
  public:
    using Neighbours<device>::Neighbours;

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(site_table));
        eqc_neighbours a = {};
        int64_t taps;
        TF_RETURN_IF_ERROR(this->fill(ctx, &a, &taps));
        const Tensor *out_coords, *out_count;
        TF_RETURN_IF_ERROR(ctx->input("out_coords", &out_coords));
        if (out_coords->dims() != 2 || out_coords->dim_size(1) != 1 + a.axes)
            return wrong_shape("out_coords", *out_coords, "[M, 1 + axes] with the axes of coords");
        a.out_rows = out_coords->dim_size(0);
        a.out_coords = static_cast<const int32_t*>(memory_of(*out_coords));
        TF_RETURN_IF_ERROR(ctx->input("out_count", &out_count));
        int64_t count = a.out_rows;
        if (out_count->shape() == TensorShape({1})) {
            a.out_count = static_cast<const int32_t*>(memory_of(*out_count));
            if (device == eqc::CPU) count = *a.out_count;
            if (count < 0 || count > a.out_rows) return absl::InvalidArgumentError("out_count is outside the list");
        } else if (out_count->shape() != TensorShape({0})) {
            return wrong_shape("out_count", *out_count, "[1] or [0]");
        }
        const int64_t extents[] = {a.batch, a.out_extent_0, a.out_extent_1, a.out_extent_2, a.out_extent_3};
        TF_RETURN_IF_ERROR(this->inside("out_coords", *out_coords, count, extents));
        TensorShape shape;
        TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape({a.out_rows, taps}, &shape));
        Tensor* table;
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &table));
        a.table = static_cast<int32_t*>(this->fresh(*table));
        return this->run(ctx, site_table, a);
    }
};

// The bottleneck.

template <typename T, eqc::Place device>
class Residual : public RowsKernel<T, device> {
  public:
    explicit Residual(OpKernelConstruction* ctx) : RowsKernel<T, device>(ctx), attributes_(ctx) {
        OP_REQUIRES_OK(ctx, ctx->GetAttr("activated", &activated_));
        OP_REQUIRES_OK(ctx, ctx->GetAttr("blank", &blank_));
    }

    void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, compute(ctx)); }

  private:
    absl::Status compute(OpKernelContext* ctx) const {
        TF_RETURN_IF_ERROR(this->present(residual_forward));
        eqc_residual a = {};
        attributes_.set(&a);
        const Tensor *x, *w1, *site, *base;
        TF_RETURN_IF_ERROR(ctx->input("x", &x));
        TF_RETURN_IF_ERROR(ctx->input("w1", &w1));
        TF_RETURN_IF_ERROR(ctx->input("site", &site));
        TF_RETURN_IF_ERROR(ctx->input("base", &base));
        if (x->dims() != 4) return wrong_shape("x", *x, "[N,H,W,C]");
        if (w1->dims() != 2 || w1->dim_size(0) != x->dim_size(3))
            return wrong_shape("w1", *w1, "[C,M] with the C of x");
        if (site->dims() != 1) return wrong_shape("site", *site, "[P]");
        if (!blank_ && base->shape() != x->shape()) return wrong_shape("base", *base, x->shape().DebugString());
        a.images = x->dim_size(0);
        a.height = x->dim_size(1);
        a.width = x->dim_size(2);
        a.channels = x->dim_size(3);
        a.bottleneck = w1->dim_size(1);
        a.sites = site->dim_size(0);
        const int64_t pixels = positions({a.images, a.height, a.width});
        if (pixels == most_positions) return wrong_shape("x", *x, "less than 2^31 pixels");
        const int64_t c = a.channels, m = a.bottleneck;
        if (activated_) {
            TF_RETURN_IF_ERROR((this->template input<1>(ctx, "scale1", {c}, &a.scale1)));
            TF_RETURN_IF_ERROR((this->template input<1>(ctx, "shift1", {c}, &a.shift1)));
        }
        TF_RETURN_IF_ERROR((this->template input<2>(ctx, "w1", {c, m}, &a.w1)));
        TF_RETURN_IF_ERROR((this->template input<1>(ctx, "scale2", {m}, &a.scale2)));
        TF_RETURN_IF_ERROR((this->template input<1>(ctx, "shift2", {m}, &a.shift2)));
        TF_RETURN_IF_ERROR((this->template input<4>(ctx, "w2", {3, 3, m, m}, &a.w2)));
        TF_RETURN_IF_ERROR((this->template input<1>(ctx, "scale3", {m}, &a.scale3)));
        TF_RETURN_IF_ERROR((this->template input<1>(ctx, "shift3", {m}, &a.shift3)));
        TF_RETURN_IF_ERROR((this->template input<2>(ctx, "w3", {m, c}, &a.w3)));
        a.x = memory_of(*x);
        a.site = static_cast<const int32_t*>(memory_of(*site));
        int64_t count;
        TF_RETURN_IF_ERROR(eqc::counted<device>(ctx, a.sites, &a.count, &count));
        if (device == eqc::CPU) {
            for (int64_t p = 0; p < count; ++p)
                if (a.site[p] < 0 || a.site[p] >= pixels || (p > 0 && a.site[p] <= a.site[p - 1]))
                    return absl::InvalidArgumentError("the listed pixels are not ascending numbers in [0, " +
                                                      std::to_string(pixels) + ")");
        }
        // Not the memory of base, which may be x: neighbours still read it.
        Tensor* y;
        TF_RETURN_IF_ERROR(ctx->allocate_output(0, x->shape(), &y));
        a.y = this->fresh(*y);
        if (!blank_) TF_RETURN_IF_ERROR(this->start(ctx, memory_of(*base), a.y, pixels, c, a.threads));
        return this->run(ctx, residual_forward, a);
    }

    Attributes attributes_;
    bool activated_ = false;
    /* Without a base: nothing but the listed pixels is written. */
    bool blank_ = false;
};

// Shapes.

absl::Status no_shapes(InferenceContext*) { return absl::OkStatus(); }

DimensionHandle known(InferenceContext* c, const Tensor* numbers, int place) {
    if (numbers == nullptr || numbers->NumElements() <= place) return c->UnknownDim();
    const int32_t value = static_cast<const int32_t*>(memory_of(*numbers))[place];
    return value < 0 ? c->UnknownDim() : c->MakeDim(value);
}

absl::Status list_shape(InferenceContext* c, DimensionHandle columns) {
    c->set_output(0, c->Matrix(c->UnknownDim(), columns));
    c->set_output(1, c->Vector(1));
    return absl::OkStatus();
}

absl::Status mask_blocks_shape(InferenceContext* c) { return list_shape(c, c->MakeDim(3)); }

absl::Status pixels_shape(InferenceContext* c) {
    c->set_output(0, c->Vector(c->UnknownDim()));
    c->set_output(1, c->Vector(1));
    return absl::OkStatus();
}

absl::Status gather_shape(InferenceContext* c) {
    ShapeHandle x, index;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &index));
    int32_t flags;
    TF_RETURN_IF_ERROR(c->GetAttr("flags", &flags));
    const Tensor* window = c->input_tensor(3);
    const DimensionHandle rows = c->Dim(index, 0), channels = c->Dim(x, 3);
    const DimensionHandle height = known(c, window, 0), width = known(c, window, 1);
    c->set_output(0, flags & EQC_BS_TRANSPOSE ? c->MakeShape({rows, channels, height, width})
                                              : c->MakeShape({rows, height, width, channels}));
    return absl::OkStatus();
}

absl::Status scatter_shape(InferenceContext* c) {
    bool zeros;
    TF_RETURN_IF_ERROR(c->GetAttr("zeros", &zeros));
    ShapeHandle y;
    if (zeros) {
        TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(4, &y));
    } else {
        TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 4, &y));
    }
    c->set_output(0, y);
    return absl::OkStatus();
}

absl::Status site_forward_shape(InferenceContext* c) {
    bool tabled;
    TF_RETURN_IF_ERROR(c->GetAttr("tabled", &tabled));
    ShapeHandle w;
    TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(1), 3, &w));
    const DimensionHandle filters = c->Dim(w, -1);
    if (tabled) {
        ShapeHandle table;
        TF_RETURN_IF_ERROR(c->WithRank(c->input(6), 2, &table));
        c->set_output(0, c->Matrix(c->Dim(table, 0), filters));
        return absl::OkStatus();
    }
    ShapeHandle x;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
    const Tensor* geometry = c->input_tensor(7);
    c->set_output(0, c->MakeShape({c->Dim(x, 0), known(c, geometry, 0), known(c, geometry, 1), filters}));
    return absl::OkStatus();
}

absl::Status site_backward_shape(InferenceContext* c) {
    int32_t wanted;
    TF_RETURN_IF_ERROR(c->GetAttr("wanted", &wanted));
    ShapeHandle w;
    TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(3), 3, &w));
    c->set_output(0, wanted & DX ? c->input(2) : c->Vector(0));
    c->set_output(1, wanted & DW ? w : c->Vector(0));
    c->set_output(2, c->Vector(wanted & DB ? c->Dim(w, -1) : c->MakeDim(0)));
    return absl::OkStatus();
}

absl::Status site_outputs_shape(InferenceContext* c) {
    ShapeHandle coords;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &coords));
    return list_shape(c, c->Dim(coords, 1));
}

absl::Status site_table_shape(InferenceContext* c) {
    ShapeHandle out_coords;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &out_coords));
    c->set_output(0, c->Matrix(c->Dim(out_coords, 0), c->UnknownDim()));
    return absl::OkStatus();
}

absl::Status residual_shape(InferenceContext* c) {
    ShapeHandle x;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
    c->set_output(0, x);
    return absl::OkStatus();
}

}  // namespace

#define EQC_ATTRIBUTES .Attr("flags: int = 0").Attr("threads: int = 0").Attr("core: string = ''")

REGISTER_OP("EqconvMaskBlocks")
    .Input("mask: T")
    .Input("grid: int32")
    .Input("window: int32")
    .Output("index: int32")
    .Output("count: int32")
    .Attr("T: {float, double, bool}")
    .Attr("tolerance: float")
    EQC_ATTRIBUTES
    .SetShapeFn(mask_blocks_shape);

REGISTER_OP("EqconvMaskPixels")
    .Input("mask: T")
    .Input("grid: int32")
    .Input("window: int32")
    .Output("pixels: int32")
    .Output("count: int32")
    .Attr("T: {float, double, bool}")
    .Attr("tolerance: float")
    EQC_ATTRIBUTES
    .SetShapeFn(pixels_shape);

REGISTER_OP("EqconvBlockGather")
    .Input("x: T")
    .Input("index: int32")
    .Input("count: int32")
    .Input("window: int32")
    .Output("blocks: T")
    .Attr("T: {float, double}")
    EQC_ATTRIBUTES
    .SetShapeFn(gather_shape);

REGISTER_OP("EqconvBlockScatter")
    .Input("blocks: T")
    .Input("index: int32")
    .Input("count: int32")
    .Input("base: T")
    .Input("size: int32")
    .Input("window: int32")
    .Output("y: T")
    .Attr("T: {float, double}")
    .Attr("blank: bool = false")
    .Attr("zeros: bool = false")
    EQC_ATTRIBUTES
    .SetShapeFn(scatter_shape);

REGISTER_OP("EqconvBlockScatterVar")
    .Input("blocks: T")
    .Input("index: int32")
    .Input("count: int32")
    .Input("variable: resource")
    .Input("window: int32")
    .Attr("T: {float, double}")
    EQC_ATTRIBUTES
    .SetIsStateful()
    .SetShapeFn(no_shapes);

REGISTER_OP("EqconvBlockPixels")
    .Input("index: int32")
    .Input("count: int32")
    .Input("size: int32")
    .Input("window: int32")
    .Output("pixels: int32")
    .Output("pixel_count: int32")
    EQC_ATTRIBUTES
    .SetShapeFn(pixels_shape);

REGISTER_OP("EqconvSiteForward")
    .Input("x: T")
    .Input("w: T")
    .Input("bias: T")
    .Input("base: T")
    .Input("site: int32")
    .Input("count: int32")
    .Input("table: int32")
    .Input("geometry: int32")
    .Output("y: T")
    .Attr("T: {float, double}")
    .Attr("tabled: bool")
    .Attr("biased: bool")
    .Attr("based: bool")
    EQC_ATTRIBUTES
    .SetShapeFn(site_forward_shape);

/* The image form of EqconvSiteForward, written into a variable. */
REGISTER_OP("EqconvSiteForwardVar")
    .Input("x: T")
    .Input("w: T")
    .Input("bias: T")
    .Input("site: int32")
    .Input("count: int32")
    .Input("geometry: int32")
    .Input("variable: resource")
    .Attr("T: {float, double}")
    .Attr("biased: bool")
    EQC_ATTRIBUTES
    .SetIsStateful()
    .SetShapeFn(no_shapes);

REGISTER_OP("EqconvSiteBackward")
    .Input("dy: T")
    .Input("y: T")
    .Input("x: T")
    .Input("w: T")
    .Input("site: int32")
    .Input("count: int32")
    .Input("table: int32")
    .Input("inverse: int32")
    .Input("geometry: int32")
    .Output("dx: T")
    .Output("dw: T")
    .Output("db: T")
    .Attr("T: {float, double}")
    .Attr("tabled: bool")
    .Attr("inverted: bool = false")
    .Attr("wanted: int")
    EQC_ATTRIBUTES
    .SetShapeFn(site_backward_shape);

REGISTER_OP("EqconvSiteOutputs")
    .Input("coords: int32")
    .Input("count: int32")
    .Input("geometry: int32")
    .Output("out_coords: int32")
    .Output("out_count: int32")
    EQC_ATTRIBUTES
    .SetShapeFn(site_outputs_shape);

REGISTER_OP("EqconvSiteTable")
    .Input("coords: int32")
    .Input("count: int32")
    .Input("out_coords: int32")
    .Input("out_count: int32")
    .Input("geometry: int32")
    .Output("table: int32")
    EQC_ATTRIBUTES
    .SetShapeFn(site_table_shape);

REGISTER_OP("EqconvResidualForward")
    .Input("x: T")
    .Input("base: T")
    .Input("site: int32")
    .Input("count: int32")
    .Input("scale1: T")
    .Input("shift1: T")
    .Input("w1: T")
    .Input("scale2: T")
    .Input("shift2: T")
    .Input("w2: T")
    .Input("scale3: T")
    .Input("shift3: T")
    .Input("w3: T")
    .Output("y: T")
    .Attr("T: {float, double}")
    .Attr("activated: bool")
    .Attr("blank: bool = false")
    EQC_ATTRIBUTES
    .SetShapeFn(residual_shape);

#define EQC_CPU(name) Name(name).Device(tensorflow::DEVICE_CPU)
#define EQC_GPU(name) Name(name).Device(tensorflow::DEVICE_GPU)

/* One kernel on each device for a type; `host` are the inputs that the host reads. */
#define EQC_REGISTER_MASK(name, T, blocks)                                                      \
    REGISTER_KERNEL_BUILDER(EQC_CPU(name).TypeConstraint<T>("T"), Mask<T, eqc::CPU, blocks>);   \
    REGISTER_KERNEL_BUILDER(EQC_GPU(name).TypeConstraint<T>("T").HostMemory("grid").HostMemory("window"), \
                            Mask<T, eqc::CUDA, blocks>);

#define EQC_REGISTER_MASKS(T)                       \
    EQC_REGISTER_MASK("EqconvMaskBlocks", T, true)  \
    EQC_REGISTER_MASK("EqconvMaskPixels", T, false)

EQC_REGISTER_MASKS(float)
EQC_REGISTER_MASKS(double)
EQC_REGISTER_MASKS(bool)

#define EQC_REGISTER_REAL(T)                                                                                        \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvBlockGather").TypeConstraint<T>("T"), BlockGather<T, eqc::CPU>);         \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvBlockScatter").TypeConstraint<T>("T"), BlockScatter<T, eqc::CPU>);       \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvBlockScatterVar").TypeConstraint<T>("T"), BlockScatterVar<T, eqc::CPU>); \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvSiteForward").TypeConstraint<T>("T"), SiteForward<T, eqc::CPU, false>);  \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvSiteForwardVar").TypeConstraint<T>("T"), SiteForward<T, eqc::CPU, true>); \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvSiteBackward").TypeConstraint<T>("T"), SiteBackward<T, eqc::CPU>);       \
    REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvResidualForward").TypeConstraint<T>("T"), Residual<T, eqc::CPU>);        \
    REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvBlockGather").TypeConstraint<T>("T").HostMemory("window"),               \
                            BlockGather<T, eqc::CUDA>);                                                             \
    REGISTER_KERNEL_BUILDER(                                                                                        \
        EQC_GPU("EqconvBlockScatter").TypeConstraint<T>("T").HostMemory("size").HostMemory("window"),               \
        BlockScatter<T, eqc::CUDA>);                                                                                \
    REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvSiteForward").TypeConstraint<T>("T").HostMemory("geometry"),             \
                            SiteForward<T, eqc::CUDA, false>);                                                      \
    REGISTER_KERNEL_BUILDER(                                                                                        \
        EQC_GPU("EqconvBlockScatterVar").TypeConstraint<T>("T").HostMemory("variable").HostMemory("window"),        \
        BlockScatterVar<T, eqc::CUDA>);                                                                             \
    REGISTER_KERNEL_BUILDER(                                                                                        \
        EQC_GPU("EqconvSiteForwardVar").TypeConstraint<T>("T").HostMemory("variable").HostMemory("geometry"),       \
        SiteForward<T, eqc::CUDA, true>);                                                                           \
    REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvSiteBackward").TypeConstraint<T>("T").HostMemory("geometry"),            \
                            SiteBackward<T, eqc::CUDA>);                                                            \
    REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvResidualForward").TypeConstraint<T>("T"), Residual<T, eqc::CUDA>);

EQC_REGISTER_REAL(float)
EQC_REGISTER_REAL(double)

REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvBlockPixels"), BlockPixels<eqc::CPU>);
REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvBlockPixels").HostMemory("size").HostMemory("window"), BlockPixels<eqc::CUDA>);
REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvSiteOutputs"), SiteOutputs<eqc::CPU>);
REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvSiteOutputs").HostMemory("geometry"), SiteOutputs<eqc::CUDA>);
REGISTER_KERNEL_BUILDER(EQC_CPU("EqconvSiteTable"), SiteTable<eqc::CPU>);
REGISTER_KERNEL_BUILDER(EQC_GPU("EqconvSiteTable").HostMemory("geometry"), SiteTable<eqc::CUDA>);
