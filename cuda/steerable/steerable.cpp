/* Expansion of steerable kernels on the CPU; compiled once for each instruction set, chosen when it is called.
 *
 * Threads share groups of pairs of fields of one type. Each lane of a vector has the sums of one pair, or of one pixel,
 * in an order that does not depend on the group, so any number of threads gives the same bits.
 */
#include "steerable.h"

#include "by_harmonics.h"
#include "directly.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* Either way of computing. */
template <class T, template <class> class Way>
struct Expansion {
    Arena arena;
    Layer<T> layer;
    Way<T> way;

    Expansion(const Arguments& a, void* workspace) : arena(workspace), layer(a, arena), way(layer, arena) {}

    int forward() {
        if (!layer.read()) return EQC_BAD_ARGUMENT;
        if (filter_size(layer.a) == 0) return EQC_OK;
        way.prepare_forward();
        parallel_for(layer.threads, layer.groups(), [&](int64_t item, int thread) {
            const Group& group = layer.group(item);
            group.type < 0 ? clear(group) : way.forward(group, thread);
        });
        return EQC_OK;
    }

    int backward() {
        if (!layer.read()) return EQC_BAD_ARGUMENT;
        const Arguments& a = layer.a;
        if (filter_size(a) == 0) {
            if (a.weights_size > 0) std::memset(a.weights, 0, size_t(a.weights_size) * sizeof(T));
            return EQC_OK;
        }
        way.prepare_backward();
        parallel_for(layer.threads, layer.groups(), [&](int64_t item, int thread) {
            const Group& group = layer.group(item);
            if (group.type >= 0) way.backward(group, thread);
        });
        return EQC_OK;
    }

    /* Blocks of pairs without a type. */
    void clear(const Group& group) const {
        const Arguments& a = layer.a;
        for (int32_t q = 0; q < group.count; ++q) {
            const Pair& pair = group.pairs[q];
            for (int32_t o = 0; o < pair.out_size && pair.in_size > 0; ++o)
                std::memset(layer.filter(pair) + o * a.in_channels * a.pixels, 0,
                            size_t(pair.in_size * a.pixels) * sizeof(T));
        }
    }
};

template <class T>
size_t expansion_workspace(const Arguments* a) {
    if (wrong(a)) return 0;
    return direct(*a) ? Expansion<T, Directly>(*a, nullptr).arena.used()
                      : Expansion<T, ByHarmonics>(*a, nullptr).arena.used();
}

template <class T>
size_t forward_workspace(const Arguments* a) {
    return expansion_workspace<T>(a);
}
template <class T>
size_t backward_workspace(const Arguments* a) {
    return expansion_workspace<T>(a);
}
template <class T>
int forward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace) return EQC_BAD_ARGUMENT;
    return direct(*a) ? Expansion<T, Directly>(*a, workspace).forward()
                      : Expansion<T, ByHarmonics>(*a, workspace).forward();
}
template <class T>
int backward(const Arguments* a, void* workspace) {
    if (wrong(a) || !workspace) return EQC_BAD_ARGUMENT;
    return direct(*a) ? Expansion<T, Directly>(*a, workspace).backward()
                      : Expansion<T, ByHarmonics>(*a, workspace).backward();
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#include "../common/dispatch.h"

EQC_DEFINE(expand_forward, eqc_expansion, eqc::forward)
EQC_DEFINE(expand_backward, eqc_expansion, eqc::backward)
