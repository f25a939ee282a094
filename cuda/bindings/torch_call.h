/* What the PyTorch operators of all families have in common: a call of one operation of a core, with its tensors
 * checked.
 *
 * What a Python caller can get wrong is checked here and in the operators, so that no call reads memory that is not its
 * own; the contents of index arrays are those of a plan and are not checked again.
 */
#ifndef EQC_TORCH_CALL_H
#define EQC_TORCH_CALL_H

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "cores.h"

namespace eqc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/* Stands for memory of size 0, for which PyTorch gives a null pointer. */
alignas(64) inline char no_memory[64];

/* PyTorch's own threads for the core: others would share the cores with them while they watch for more work. */
inline void lend_threads(int n, void (*work)(void*, int), void* context) {
    torch::stable::parallel_for(0, n, 1, [=](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) work(context, int(k));
    });
}

/* A workspace of up to so many bytes lies on the stack: to allocate a tensor takes as long as a small graph. */
constexpr size_t largest_small = 1 << 16;

constexpr size_t most_axes = 8;

using CurrentStream = int32_t (*)(int32_t, void**);

/* A PyTorch without CUDA lacks this function, so it cannot be linked; its library is loaded already. */
inline CurrentStream current_cuda_stream() {
    static const CurrentStream found = [] {
        const char* name = "aoti_torch_get_current_cuda_stream";
        void* symbol = dlsym(RTLD_DEFAULT, name);
        for (const char* library : {"libtorch_cuda.so", "libtorch_hip.so"}) {
            if (symbol != nullptr) break;
            if (void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(handle, name);
        }
        return reinterpret_cast<CurrentStream>(symbol);
    }();
    return found;
}

inline std::string text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    std::string out = "[";
    for (size_t k = 0; k < sizes.size(); ++k) out += (k ? ", " : "") + std::to_string(sizes[k]);
    return out + "]";
}

inline int32_t device_type(const Tensor& tensor) {
    int32_t type;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type;
}

inline int32_t raw_dtype(const Tensor& tensor) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    return dtype;
}

/* One call of an operation: checks its tensors against `x`, allocates like it, and runs in the right core. */
class Call {
  public:
    /* `x_name`: what the operator calls x. */
    Call(const AnyOperation& operation, const Tensor& x, const std::string& core, const char* x_name = "x")
        : Call(operation, x, raw_dtype(x), core, x_name) {
        STD_TORCH_CHECK(wide_ || dtype_ == aoti_torch_dtype_float32(), x_name, " has dtype ",
                        torch::headeronly::toString(x.scalar_type()), ": allowed: Float, Double");
    }

    /* For an operation without real arrays, whose functions for float and for double are the same: `x` tells the device
     * only. */
    static Call without_reals(const AnyOperation& operation, const Tensor& x, const std::string& core) {
        return Call(operation, x, aoti_torch_dtype_float32(), core, "x");
    }

    /* The memory of an input of this shape; made contiguous where it is not. */
    template <size_t rank>
    const void* input(const char* name, const Tensor& tensor, const std::array<int64_t, rank>& shape) {
        check(name, tensor, dtype_);
        check_shape(name, tensor, shape);
        return memory(tensor);
    }

    /* The memory of an input whose shape is the caller's to check. */
    const void* any_shape(const char* name, const Tensor& tensor) {
        check(name, tensor, dtype_);
        return memory(tensor);
    }

    /* The memory of an input of int32 numbers. */
    template <size_t rank>
    const int32_t* indices(const char* name, const Tensor& tensor, const std::array<int64_t, rank>& shape) {
        check(name, tensor, aoti_torch_dtype_int32());
        check_shape(name, tensor, shape);
        return static_cast<const int32_t*>(memory(tensor));
    }

    /* How many entries of a list count; NULL for none given. */
    const int32_t* count(const char* name, const std::optional<Tensor>& tensor) {
        return tensor ? indices<1>(name, *tensor, {1}) : nullptr;
    }

    /* The memory of bytes, which stand for truth values; their shape is the caller's to check. */
    const uint8_t* bytes(const char* name, const Tensor& tensor) {
        check(name, tensor, aoti_torch_dtype_bool());
        return static_cast<const uint8_t*>(memory(tensor));
    }

    /* The memory of a tensor that is computed into, in this shape. */
    template <size_t rank>
    void* target(const char* name, const Tensor& tensor, const std::array<int64_t, rank>& shape) const {
        check(name, tensor, dtype_);
        check_shape(name, tensor, shape);
        STD_TORCH_CHECK(tensor.is_contiguous(), name, " is computed into: it must be contiguous");
        return memory_of(tensor);
    }

    /* As input(), and never the memory at `other`, which would tell the operation that both are one. */
    template <size_t rank>
    const void* other_input(const char* name, const Tensor& tensor, const std::array<int64_t, rank>& shape,
                            const void* other) {
        const void* data = input(name, tensor, shape);
        if (data != other) return data;
        return tensor.numel() == 0 ? no_memory + 1 : keep(torch::stable::clone(tensor));
    }

    const int64_t* pattern(const Tensor& tensor) {
        check("pattern", tensor, aoti_torch_dtype_int64());
        STD_TORCH_CHECK(tensor.dim() == 1, "pattern has shape ", text(tensor.sizes()), ": expected one axis");
        return static_cast<const int64_t*>(memory(tensor));
    }

    /* What is computed into may not share memory with what is read. */
    void check_apart(const char* name, const Tensor& written, const char* other_name, const Tensor& read) const {
        const auto first = [](const Tensor& tensor) { return static_cast<const char*>(tensor.const_data_ptr()); };
        const auto last = [&](const Tensor& tensor) {
            int64_t reach = 1;
            for (int64_t axis = 0; axis < tensor.dim(); ++axis) reach += (tensor.size(axis) - 1) * tensor.stride(axis);
            return first(tensor) + reach * int64_t(tensor.element_size());
        };
        const bool apart = written.numel() == 0 || read.numel() == 0 || last(written) <= first(read) ||
                           last(read) <= first(written);
        STD_TORCH_CHECK(apart, name, " shares memory with ", other_name, ", which is read while it is computed");
    }

    template <size_t rank>
    Tensor output(const std::array<int64_t, rank>& shape) const {
        return allocate(shape, dtype_);
    }

    /* A contiguous one of the shape of `tensor`. */
    Tensor output_like(const Tensor& tensor) const {
        const auto sizes = tensor.sizes();
        return allocate(sizes, dtype_);
    }

    template <size_t rank>
    Tensor index_output(const std::array<int64_t, rank>& shape) const {
        return allocate(shape, aoti_torch_dtype_int32());
    }

    static void* memory_of(const Tensor& tensor) {
        void* data = tensor.mutable_data_ptr();
        return data == nullptr ? no_memory : data;
    }

    template <typename Arguments>
    void run(const Operation<Arguments>& operation, const Arguments& arguments) const {
        void* stream = nullptr;
        std::optional<torch::stable::accelerator::DeviceGuard> guard;
        if (place_ == CUDA) {
            guard.emplace(device_index_);
            STD_TORCH_CHECK(current_cuda_stream() != nullptr, "this PyTorch offers no CUDA stream");
            STABLE_TORCH_ERROR_CODE_CHECK(current_cuda_stream()(device_index_, &stream));
        }
        const size_t bytes = operation.workspace(place_, wide_, arguments);
        alignas(64) char small[largest_small];
        std::optional<Tensor> workspace;
        if (bytes > sizeof small || place_ == CUDA)
            workspace = allocate(std::array<int64_t, 1>{int64_t(bytes)}, aoti_torch_dtype_uint8());
        void* memory = workspace ? memory_of(*workspace) : small;
        const eqc::Lending lending(place_, lend_threads);
        const int status = operation.run(place_, wide_, arguments, memory, bytes, stream);
        STD_TORCH_CHECK(status == EQC_OK, fault(operation.name(), place_, status));
    }

    Place place() const { return place_; }

    /* Whether real numbers are double. */
    bool wide() const { return wide_; }

    int32_t threads(int64_t wanted) const {
        if (place_ != CPU || wanted > 0) return int32_t(wanted);
        return int32_t(torch::stable::get_num_threads());
    }

  private:
    Call(const AnyOperation& operation, const Tensor& x, int32_t dtype, const std::string& core, const char* x_name)
        : x_name_(x_name), dtype_(dtype), device_type_(device_type(x)), device_index_(x.get_device_index()) {
        STD_TORCH_CHECK(core.empty() || core == "emulated", "core is '", core, "': allowed: '', 'emulated'");
        wide_ = dtype_ == aoti_torch_dtype_float64();
        const bool cuda = device_type_ != aoti_torch_device_type_cpu();
        STD_TORCH_CHECK(!cuda || core.empty(), "the emulated core computes on tensors of the CPU");
        place_ = cuda ? CUDA : core.empty() ? CPU : EMULATED;
        STD_TORCH_CHECK(operation.present(place_, wide_), absent(operation.name(), place_));
    }

    void check(const char* name, const Tensor& tensor, int32_t dtype) const {
        STD_TORCH_CHECK(raw_dtype(tensor) == dtype, name, " has dtype ",
                        torch::headeronly::toString(tensor.scalar_type()), ", which does not go with that of ",
                        x_name_);
        STD_TORCH_CHECK(device_type(tensor) == device_type_ && tensor.get_device_index() == device_index_, name,
                        " is not on the device of ", x_name_);
    }

    template <size_t rank>
    static void check_shape(const char* name, const Tensor& tensor, const std::array<int64_t, rank>& shape) {
        const auto sizes = tensor.sizes();
        bool fits = sizes.size() == rank;
        for (size_t k = 0; fits && k < rank; ++k) fits = sizes[k] == shape[k];
        STD_TORCH_CHECK(fits, name, " has shape ", text(sizes), ": expected ",
                        text(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), rank)));
    }

    const void* memory(const Tensor& tensor) {
        const void* data = tensor.is_contiguous() ? tensor.const_data_ptr() : keep(torch::stable::contiguous(tensor));
        return data == nullptr ? no_memory : data;
    }

    /* The memory of a copy, which lives as long as the call. */
    const void* keep(Tensor copy) {
        STD_TORCH_CHECK(kept_ < copies_.size(), "too many tensors that are not contiguous");
        copies_[kept_] = std::move(copy);
        return copies_[kept_++]->const_data_ptr();
    }

    template <typename Sizes>
    Tensor allocate(const Sizes& shape, int32_t dtype) const {
        const size_t rank = shape.size();
        std::array<int64_t, most_axes> strides;
        STD_TORCH_CHECK(rank <= most_axes, "no more than ", most_axes, " axes are allowed");
        int64_t step = 1;
        for (size_t k = rank; k-- > 0; step *= shape[k] > 0 ? shape[k] : 1) strides[k] = step;
        AtenTensorHandle made;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(rank), shape.data(), strides.data(), dtype,
                                                               device_type_, device_index_, &made));
        Tensor tensor(made);
        const int64_t large = 1 << 20;
        if (place_ == CPU && step > large)
            prefer_large_pages(tensor.mutable_data_ptr(), size_t(step) * tensor.element_size());
        return tensor;
    }

    const char* x_name_;
    int32_t dtype_, device_type_, device_index_;
    bool wide_ = false;
    Place place_ = CPU;
    std::array<std::optional<Tensor>, 16> copies_;
    size_t kept_ = 0;
};

}  // namespace eqc

#endif
