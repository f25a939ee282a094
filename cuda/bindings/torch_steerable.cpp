/* The expansion of steerable kernels and its transpose as PyTorch operators. */
#include <vector>

#include "steerable_tables.h"
#include "torch_call.h"

namespace {

using eqc::Call;
using eqc::Tensor;

const eqc::Operation<eqc_expansion> forward_operation("expand_forward");
const eqc::Operation<eqc_expansion> backward_operation("expand_backward");

/* What both have in common: everything but weights and filter. */
eqc_expansion common_arguments(Call& call, const Tensor& words, const Tensor& reals, const std::vector<int64_t>& sizes,
                               int64_t flags, int64_t threads) {
    eqc_expansion a = {};
    const std::string wrong_sizes = eqc::set_sizes(sizes.data(), sizes.size(), a);
    STD_TORCH_CHECK(wrong_sizes.empty(), wrong_sizes);
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    const int64_t words_length = words.numel(), reals_length = reals.numel();
    const std::string wrong_tables =
        eqc::set_tables(call.indices<1>("words", words, {words_length}), words_length,
                        call.input<1>("reals", reals, {reals_length}), reals_length, call.wide(), a);
    STD_TORCH_CHECK(wrong_tables.empty(), wrong_tables);
    return a;
}

Tensor expand_forward(const Tensor& weights, const Tensor& words, const Tensor& reals,
                      const std::vector<int64_t>& sizes, int64_t flags, int64_t threads, const std::string& core) {
    Call call(forward_operation, weights, core, "weights");
    eqc_expansion a = common_arguments(call, words, reals, sizes, flags, threads);
    a.weights = const_cast<void*>(call.input<1>("weights", weights, {a.weights_size}));
    Tensor filter = call.output<3>({a.out_channels, a.in_channels, a.pixels});
    a.filter = Call::memory_of(filter);
    call.run(forward_operation, a);
    return filter;
}

Tensor expand_backward(const Tensor& filter, const Tensor& words, const Tensor& reals,
                       const std::vector<int64_t>& sizes, int64_t flags, int64_t threads, const std::string& core) {
    Call call(backward_operation, filter, core, "filter");
    eqc_expansion a = common_arguments(call, words, reals, sizes, flags, threads);
    a.filter = const_cast<void*>(call.input<3>("filter", filter, {a.out_channels, a.in_channels, a.pixels}));
    Tensor weights = call.output<1>({a.weights_size});
    a.weights = Call::memory_of(weights);
    call.run(backward_operation, a);
    return weights;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(eqconv, m) {
    m.def(
        "expand_forward(Tensor weights, Tensor words, Tensor reals, int[] sizes, int flags, int threads, str core) -> "
        "Tensor");
    m.def(
        "expand_backward(Tensor filter, Tensor words, Tensor reals, int[] sizes, int flags, int threads, str core) -> "
        "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(eqconv, CPU, m) {
    m.impl("expand_forward", TORCH_BOX(&expand_forward));
    m.impl("expand_backward", TORCH_BOX(&expand_backward));
}

STABLE_TORCH_LIBRARY_IMPL(eqconv, CUDA, m) {
    m.impl("expand_forward", TORCH_BOX(&expand_forward));
    m.impl("expand_backward", TORCH_BOX(&expand_backward));
}
