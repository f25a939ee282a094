/* The compiled operations as PyTorch operators, on PyTorch's stable ABI only: one binary for every release from 2.10.
 *
 * What a Python caller can get wrong is checked here, so that no call reads memory that is not its own; the contents of
 * index arrays are those of a plan and are not checked again. Fake kernels and gradients are registered in Python.
 */
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "cores.h"
#include "feature_steered_pattern.h"

EQC_DEFINE_OPEN_CORE()

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/* Stands for memory of size 0, for which PyTorch gives a null pointer. */
alignas(64) char no_memory[64];

/* A workspace of up to so many bytes lies on the stack: to allocate a tensor takes as long as a small graph. */
constexpr size_t largest_small = 1 << 16;

using CurrentStream = int32_t (*)(int32_t, void**);

/* A PyTorch without CUDA lacks this function, so it cannot be linked; its library is loaded already. */
CurrentStream current_cuda_stream() {
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

std::string text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    std::string out = "[";
    for (size_t k = 0; k < sizes.size(); ++k) out += (k ? ", " : "") + std::to_string(sizes[k]);
    return out + "]";
}

int32_t device_type(const Tensor& tensor) {
    int32_t type;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type;
}

int32_t raw_dtype(const Tensor& tensor) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    return dtype;
}

/* One call of an operation: checks its tensors against `x`, allocates like it, and runs in the right core. */
class Call {
  public:
    Call(const eqc::AnyOperation& operation, const Tensor& x, const std::string& core)
        : dtype_(raw_dtype(x)), device_type_(device_type(x)), device_index_(x.get_device_index()) {
        STD_TORCH_CHECK(core.empty() || core == "emulated", "core is '", core, "': allowed: '', 'emulated'");
        wide_ = dtype_ == aoti_torch_dtype_float64();
        STD_TORCH_CHECK(wide_ || dtype_ == aoti_torch_dtype_float32(), "x has dtype ",
                        torch::headeronly::toString(x.scalar_type()), ": allowed: Float, Double");
        const bool cuda = device_type_ != aoti_torch_device_type_cpu();
        STD_TORCH_CHECK(!cuda || core.empty(), "the emulated core computes on tensors of the CPU");
        place_ = cuda ? eqc::CUDA : core.empty() ? eqc::CPU : eqc::EMULATED;
        STD_TORCH_CHECK(operation.present(place_, wide_), eqc::absent(operation.name(), place_));
    }

    /* The memory of an input of this shape; made contiguous where it is not. */
    template <size_t rank>
    const void* input(const char* name, const Tensor& tensor, const std::array<int64_t, rank>& shape) {
        check(name, tensor, dtype_);
        const auto sizes = tensor.sizes();
        bool fits = sizes.size() == rank;
        for (size_t k = 0; fits && k < rank; ++k) fits = sizes[k] == shape[k];
        STD_TORCH_CHECK(fits, name, " has shape ", text(sizes), ": expected ",
                        text(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), rank)));
        return memory(tensor);
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

    template <size_t rank>
    Tensor output(const std::array<int64_t, rank>& shape) const {
        return allocate(shape, dtype_);
    }

    static void* memory_of(const Tensor& tensor) {
        void* data = tensor.mutable_data_ptr();
        return data == nullptr ? no_memory : data;
    }

    template <typename Arguments>
    void run(const eqc::Operation<Arguments>& operation, const Arguments& arguments) const {
        void* stream = nullptr;
        std::optional<torch::stable::accelerator::DeviceGuard> guard;
        if (place_ == eqc::CUDA) {
            guard.emplace(device_index_);
            STD_TORCH_CHECK(current_cuda_stream() != nullptr, "this PyTorch offers no CUDA stream");
            STABLE_TORCH_ERROR_CODE_CHECK(current_cuda_stream()(device_index_, &stream));
        }
        const size_t bytes = operation.workspace(place_, wide_, arguments);
        alignas(64) char small[largest_small];
        std::optional<Tensor> workspace;
        if (bytes > sizeof small || place_ == eqc::CUDA)
            workspace = allocate(std::array<int64_t, 1>{int64_t(bytes)}, aoti_torch_dtype_uint8());
        void* memory = workspace ? memory_of(*workspace) : small;
        const int status = operation.run(place_, wide_, arguments, memory, bytes, stream);
        STD_TORCH_CHECK(status == EQC_OK, eqc::fault(operation.name(), place_, status));
    }

    eqc::Place place() const { return place_; }

    int32_t threads(int64_t wanted) const {
        if (place_ != eqc::CPU || wanted > 0) return int32_t(wanted);
        return int32_t(torch::stable::get_num_threads());
    }

  private:
    void check(const char* name, const Tensor& tensor, int32_t dtype) const {
        STD_TORCH_CHECK(raw_dtype(tensor) == dtype, name, " has dtype ",
                        torch::headeronly::toString(tensor.scalar_type()), ", which does not go with that of x");
        STD_TORCH_CHECK(device_type(tensor) == device_type_ && tensor.get_device_index() == device_index_, name,
                        " is not on the device of x");
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

    template <size_t rank>
    Tensor allocate(const std::array<int64_t, rank>& shape, int32_t dtype) const {
        std::array<int64_t, rank> strides;
        int64_t step = 1;
        for (size_t k = rank; k-- > 0; step *= shape[k] > 0 ? shape[k] : 1) strides[k] = step;
        AtenTensorHandle made;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(rank), shape.data(), strides.data(), dtype,
                                                               device_type_, device_index_, &made));
        Tensor tensor(made);
        const int64_t large = 1 << 20;
        if (place_ == eqc::CPU && step > large)
            eqc::prefer_large_pages(tensor.mutable_data_ptr(), size_t(step) * tensor.element_size());
        return tensor;
    }

    int32_t dtype_, device_type_, device_index_;
    bool wide_ = false;
    eqc::Place place_ = eqc::CPU;
    std::array<std::optional<Tensor>, 16> copies_;
    size_t kept_ = 0;
};

// Feature-steered convolution.

const eqc::Operation<eqc_feature_steered> forward_operation("feature_steered_forward");
const eqc::Operation<eqc_feature_steered> backward_operation("feature_steered_backward");

/* What forward and backward have in common: everything but y and the gradients. */
eqc_feature_steered common_arguments(Call& call, const Tensor& x, const std::optional<Tensor>& centre,
                                     const Tensor& values, const Tensor& u, const Tensor& v, const Tensor& c,
                                     const Tensor& w, const Tensor& pattern, eqc::PatternSizes sizes, int64_t flags,
                                     int64_t threads, bool backward) {
    STD_TORCH_CHECK(x.dim() == 2 && w.dim() == 3 && values.dim() == 1, "x, w and values have shapes ", text(x.sizes()),
                    ", ", text(w.sizes()), " and ", text(values.sizes()), ": expected [V, C], [M, C, D] and [E]");
    eqc_feature_steered a = {};
    sizes.cols = x.size(0);
    STD_TORCH_CHECK(sizes.sensible(), "a size of the pattern is impossible");
    const char* lacks = eqc::lacking(sizes, call.place(), flags, backward);
    STD_TORCH_CHECK(lacks == nullptr, lacks);
    STD_TORCH_CHECK(centre || sizes.rows == sizes.cols, "centre is missing: there are ", sizes.rows, " rows and ",
                    sizes.cols, " columns");
    a.given_edges = values.size(0);
    a.channels = x.size(1);
    a.matrices = w.size(0);
    a.outputs = w.size(2);
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    STD_TORCH_CHECK((sizes.parts & eqc::EDGE_OF_SLOT) ? a.given_edges >= sizes.edges : a.given_edges == sizes.edges,
                    "values has ", a.given_edges, " entries but the pattern ", sizes.edges);
    const int64_t words = unpack_pattern(call.pattern(pattern), sizes, a);
    STD_TORCH_CHECK(pattern.numel() >= words, "pattern has ", pattern.numel(), " words: expected ", words);
    a.x = call.input<2>("x", x, {a.cols, a.channels});
    a.centre = centre ? call.other_input<2>("centre", *centre, {a.rows, a.channels}, a.x) : a.x;
    a.values = call.input<1>("values", values, {a.given_edges});
    a.u = call.input<2>("u", u, {a.channels, a.matrices});
    a.v = call.input<2>("v", v, {a.channels, a.matrices});
    a.c = call.input<1>("c", c, {a.matrices});
    a.w = call.input<3>("w", w, {a.matrices, a.channels, a.outputs});
    return a;
}

Tensor feature_steered_forward(const Tensor& x, const std::optional<Tensor>& centre, const Tensor& values,
                               const Tensor& u, const Tensor& v, const Tensor& c, const Tensor& w, const Tensor& b,
                               const Tensor& pattern, int64_t rows, int64_t edges, int64_t chunks, int64_t touched,
                               int64_t parts, int64_t flags, int64_t threads, const std::string& core) {
    Call call(forward_operation, x, core);
    auto a = common_arguments(call, x, centre, values, u, v, c, w, pattern, {rows, 0, edges, chunks, touched, parts},
                              flags, threads, false);
    a.b = call.input<1>("b", b, {a.outputs});
    Tensor y = call.output<2>({a.rows, a.outputs});
    a.y = Call::memory_of(y);
    call.run(forward_operation, a);
    return y;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients feature_steered_backward(const Tensor& dy, const std::optional<Tensor>& y, const Tensor& x,
                                   const std::optional<Tensor>& centre, const Tensor& values, const Tensor& u,
                                   const Tensor& v, const Tensor& c, const Tensor& w, const Tensor& pattern,
                                   int64_t rows, int64_t edges, int64_t chunks, int64_t touched, int64_t parts,
                                   int64_t wanted, int64_t flags, int64_t threads, const std::string& core) {
    Call call(backward_operation, x, core);
    auto a = common_arguments(call, x, centre, values, u, v, c, w, pattern, {rows, 0, edges, chunks, touched, parts},
                              flags, threads, true);
    a.dy = call.input<2>("dy", dy, {a.rows, a.outputs});
    STD_TORCH_CHECK(y || !(flags & EQC_FS_RELU), "y is missing: the derivative of ReLU is read from it");
    if (y) a.y = const_cast<void*>(call.input<2>("y", *y, {a.rows, a.outputs}));
    STD_TORCH_CHECK(centre || !(wanted & (1 << eqc::DCENTRE)), "the gradient of centre is wanted but there is none");

    const auto gradient = [&](eqc::Gradient bit, auto shape, void*& memory) {
        if (!(wanted & (1 << bit))) return call.output<1>({0});
        Tensor made = call.output(shape);
        memory = Call::memory_of(made);
        return made;
    };
    using One = std::array<int64_t, 1>;
    using Two = std::array<int64_t, 2>;
    using Three = std::array<int64_t, 3>;
    Tensor dx = gradient(eqc::DX, Two{a.cols, a.channels}, a.dx);
    Tensor dcentre = gradient(eqc::DCENTRE, Two{a.rows, a.channels}, a.dcentre);
    Tensor dvalues = gradient(eqc::DVALUES, One{a.given_edges}, a.dvalues);
    Tensor du = gradient(eqc::DU, Two{a.channels, a.matrices}, a.du);
    Tensor dv = gradient(eqc::DV, Two{a.channels, a.matrices}, a.dv);
    Tensor dc = gradient(eqc::DC, One{a.matrices}, a.dc);
    Tensor dw = gradient(eqc::DW, Three{a.matrices, a.channels, a.outputs}, a.dw);
    Tensor db = gradient(eqc::DB, One{a.outputs}, a.db);
    call.run(backward_operation, a);
    return {dx, dcentre, dvalues, du, dv, dc, dw, db};
}

}  // namespace

STABLE_TORCH_LIBRARY(eqconv, m) {
    m.def(
        "feature_steered_forward(Tensor x, Tensor? centre, Tensor values, Tensor u, Tensor v, Tensor c, Tensor w, "
        "Tensor b, Tensor pattern, int rows, int edges, int chunks, int touched, int parts, int flags, int threads, "
        "str core) -> Tensor");
    m.def(
        "feature_steered_backward(Tensor dy, Tensor? y, Tensor x, Tensor? centre, Tensor values, Tensor u, Tensor v, "
        "Tensor c, Tensor w, Tensor pattern, int rows, int edges, int chunks, int touched, int parts, int wanted, "
        "int flags, int threads, str core) -> (Tensor dx, Tensor dcentre, Tensor dvalues, Tensor du, Tensor dv, "
        "Tensor dc, Tensor dw, Tensor db)");
}

STABLE_TORCH_LIBRARY_IMPL(eqconv, CPU, m) {
    m.impl("feature_steered_forward", TORCH_BOX(&feature_steered_forward));
    m.impl("feature_steered_backward", TORCH_BOX(&feature_steered_backward));
}

STABLE_TORCH_LIBRARY_IMPL(eqconv, CUDA, m) {
    m.impl("feature_steered_forward", TORCH_BOX(&feature_steered_forward));
    m.impl("feature_steered_backward", TORCH_BOX(&feature_steered_backward));
}
