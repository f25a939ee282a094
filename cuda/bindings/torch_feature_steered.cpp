/* Feature-steered convolution as PyTorch operators. */
#include "feature_steered_pattern.h"
#include "torch_call.h"

namespace {

using eqc::Call;
using eqc::Tensor;
using eqc::text;

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

STABLE_TORCH_LIBRARY_FRAGMENT(eqconv, m) {
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
