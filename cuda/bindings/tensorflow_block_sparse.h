/* What the TensorFlow operators on masks and blocks have in common, whatever their names and index types.
 *
 * Sizes are checked everywhere and the contents of lists where the host can read them, so that no call reads memory
 * that is not its own; on a GPU the kernels ignore entries that name nothing.
 */
#ifndef EQC_TENSORFLOW_BLOCK_SPARSE_H
#define EQC_TENSORFLOW_BLOCK_SPARSE_H

#include <string>

#include "../block_sparse/block_sparse.h"
#include "tensorflow_call.h"

namespace eqc {

inline const Operation<eqc_mask> mask_blocks("mask_blocks");
inline const Operation<eqc_mask> mask_pixels("mask_pixels");
inline const Operation<eqc_blocks> block_gather("block_gather");
inline const Operation<eqc_blocks> block_scatter("block_scatter");
inline const Operation<eqc_blocks> block_pixels("block_pixels");

/* Flat positions are int32. */
constexpr int64_t most_positions = int64_t(1) << 31;

inline absl::Status wrong_shape(const char* name, const Tensor& tensor, const std::string& expected) {
    return absl::InvalidArgumentError(std::string(name) + " has shape " + tensor.shape().DebugString() +
                                      ": expected " + expected);
}

/* The product of extents that are not negative, or most_positions when it is that or more. */
inline int64_t positions(std::initializer_list<int64_t> extents) {
    int64_t product = 1;
    for (int64_t extent : extents)
        if (extent == 0) return 0;
    for (int64_t extent : extents) {
        if (extent >= most_positions / product + 1) return most_positions;
        product *= extent;
    }
    return product < most_positions ? product : most_positions;
}

/* An input of so many int32 in host memory. */
inline absl::Status numbers(OpKernelContext* ctx, const char* name, int64_t length, const int32_t** values) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(ctx->input(name, &tensor));
    if (tensor->shape() != TensorShape({length}))
        return wrong_shape(name, *tensor, "[" + std::to_string(length) + "]");
    *values = static_cast<const int32_t*>(memory_of(*tensor));
    return absl::OkStatus();
}

/* Size, stride and offset of windows, (height, width) each. */
struct Windows {
    const int32_t* size;
    const int32_t* stride;
    const int32_t* offset;

    absl::Status check() const {
        for (const auto& [name, values] : {std::pair("bsize", size), std::pair("bstride", stride)})
            if (values[0] < 1 || values[1] < 1)
                return absl::InvalidArgumentError(std::string(name) + "=(" + std::to_string(values[0]) + ", " +
                                                  std::to_string(values[1]) + "): both must be at least 1");
        return absl::OkStatus();
    }

    bool overlap() const { return stride[0] < size[0] || stride[1] < size[1]; }

    template <typename Arguments>
    void set(Arguments* a) const {
        a->window_height = size[0];
        a->window_width = size[1];
        a->stride_height = stride[0];
        a->stride_width = stride[1];
        a->offset_height = offset[0];
        a->offset_width = offset[1];
    }
};

/* Every entry is at least `least` and below `limit`; written so that the compiler makes vectors of it. */
inline bool all_within(const int32_t* values, int64_t count, int64_t least, int64_t limit) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t k = 0; k < count; ++k) {
        low = values[k] < low ? values[k] : low;
        high = values[k] > high ? values[k] : high;
    }
    return count == 0 || (low >= least && high < limit);
}

/* The first entries of a list that count: the memory of `count` ([1], or [0] when all do), and on the host how many. */
template <Place device>
absl::Status counted(OpKernelContext* ctx, int64_t capacity, const int32_t** memory, int64_t* count) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(ctx->input("count", &tensor));
    *memory = nullptr;
    *count = capacity;
    if (tensor->shape() == TensorShape({0})) return absl::OkStatus();
    if (tensor->shape() != TensorShape({1})) return wrong_shape("count", *tensor, "[1] or [0]");
    *memory = static_cast<const int32_t*>(memory_of(*tensor));
    if (device == CUDA) return absl::OkStatus();
    *count = **memory;
    if (*count < 0 || *count > capacity)
        return absl::InvalidArgumentError("count is " + std::to_string(*count) + " but the list has " +
                                          std::to_string(capacity) + " entries");
    return absl::OkStatus();
}

inline absl::Status check_rows(const int32_t* rows, int64_t count, int64_t images) {
    for (int64_t r = 0; r < count; ++r)
        if (rows[3 * r] < 0 || rows[3 * r] >= images || rows[3 * r + 1] < 0 || rows[3 * r + 2] < 0)
            return absl::InvalidArgumentError("active_block_indices[" + std::to_string(r) + "] is (" +
                                              std::to_string(rows[3 * r]) + ", " + std::to_string(rows[3 * r + 1]) +
                                              ", " + std::to_string(rows[3 * r + 2]) + "): the image must be in [0, " +
                                              std::to_string(images) + "), block row and column 0 or above");
    return absl::OkStatus();
}

/* A list of what is active in a mask, made in a tensor with room for everything. */
template <typename T, Place device>
class MaskKernel : public CoreKernel<T, device> {
  public:
    using CoreKernel<T, device>::CoreKernel;

  protected:
    /* Checks mask and windows; `capacity` is the number of windows. */
    absl::Status fill(const Tensor& mask, const int32_t* grid, const Windows& windows, eqc_mask* a,
                      int64_t* capacity) const {
        if ((mask.dims() != 3 && mask.dims() != 4) || (mask.dims() == 4 && mask.dim_size(3) != 1))
            return wrong_shape("mask", mask, "[N,H,W] or [N,H,W,1]");
        TF_RETURN_IF_ERROR(windows.check());
        a->images = mask.dim_size(0);
        a->height = mask.dim_size(1);
        a->width = mask.dim_size(2);
        if (grid[0] < 0 || grid[1] < 0)
            return absl::InvalidArgumentError("bcount=(" + std::to_string(grid[0]) + ", " + std::to_string(grid[1]) +
                                              "): neither may be negative");
        a->grid_height = grid[0];
        a->grid_width = grid[1];
        windows.set(a);
        *capacity = positions({a->images, a->grid_height, a->grid_width});
        if (*capacity == most_positions || positions({a->images, a->height, a->width}) == most_positions)
            return absl::InvalidArgumentError("mask has 2^31 pixels or windows, or more");
        if (std::is_same_v<T, bool>) {
            a->bytes = static_cast<const uint8_t*>(memory_of(mask));
        } else {
            a->mask = memory_of(mask);
        }
        return absl::OkStatus();
    }
};

/* Windows gathered from images, or scattered to them. */
template <typename T, Place device>
class BlockKernel : public CoreKernel<T, device> {
  public:
    using CoreKernel<T, device>::CoreKernel;

  protected:
    /* An image, and windows over it. */
    static absl::Status set_image(const char* name, const TensorShape& shape, const Windows& windows, eqc_blocks* a) {
        TF_RETURN_IF_ERROR(windows.check());
        windows.set(a);
        if (shape.dims() != 4)
            return absl::InvalidArgumentError(std::string(name) + " has shape " + shape.DebugString() +
                                              ": expected rank 4, [N,H,W,C]");
        a->images = shape.dim_size(0);
        a->height = shape.dim_size(1);
        a->width = shape.dim_size(2);
        a->channels = shape.dim_size(3);
        if (positions({a->images, a->height, a->width}) == most_positions)
            return absl::InvalidArgumentError(std::string(name) + " has 2^31 pixels or more");
        return absl::OkStatus();
    }

    /* The shape of a stack of blocks. */
    static absl::Status stack(const eqc_blocks& a, TensorShape* shape) {
        if (a.flags & EQC_BS_TRANSPOSE)
            return TensorShape::BuildTensorShape({a.rows, a.channels, a.window_height, a.window_width}, shape);
        return TensorShape::BuildTensorShape({a.rows, a.window_height, a.window_width, a.channels}, shape);
    }

    static absl::Status check_stack(const Tensor& blocks, const eqc_blocks& a) {
        TensorShape expected;
        TF_RETURN_IF_ERROR(stack(a, &expected));
        if (blocks.shape() == expected) return absl::OkStatus();
        return wrong_shape("blocks", blocks, expected.DebugString() + " (rows, bsize, channels of ybase)");
    }
};

}  // namespace eqc

#endif
