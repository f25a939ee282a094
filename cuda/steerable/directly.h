/* Expansion by the sampled basis itself on the CPU, for a group of pairs of one type, and its transpose. */
#ifndef EQC_STEERABLE_DIRECTLY_H
#define EQC_STEERABLE_DIRECTLY_H

#include "layer.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

template <class T>
class Directly {
   public:
    static constexpr int lanes = Vector<T>::lanes;
    using V = typename Vector<T>::type;

    Directly(const Layer<T>& given, Arena& arena)
        : layer(given), a(given.a), line(a.in_channels * a.pixels), tile_(padded(layer.most_elements, lanes) * lanes) {
        tiles_ = arena.take<T>(layer.threads * tile_);
    }

    void prepare_forward() {}
    void prepare_backward() {}

    void forward(const Group& group, int thread) const {
        const Type<T>& type = layer.type(group);
        T* tile = tiles_ + thread * tile_;
        load_weights(layer, group, type.elements, tile);
        const int64_t columns = type.in_size * a.pixels;
        for (int64_t o = 0; o < type.out_size; ++o)
            for_columns<T>(columns, [&](int64_t at, auto N, auto full, int last) EQC_INLINE_LAMBDA {
                for (int64_t q = 0; q < group.count; q += together)
                    sum_elements<N(), full()>(type, type.values + o * columns + at, tile + q, last, group, q,
                                              o * line + at);
            });
    }

    void backward(const Group& group, int) const {
        const Type<T>& type = layer.type(group);
        int64_t q = 0;
        for (; q + together <= group.count; q += together) gradients<together>(type, group.pairs + q);
        for (; q < group.count; ++q) gradients<1>(type, group.pairs + q);
    }

   private:
#if defined(EQC_ISA_AVX512)
    static constexpr int many = 8, elements = 3;
#else
    static constexpr int many = 4, elements = 2;
#endif
    /* Pairs. */
    static constexpr int together = many < lanes ? many : lanes;

    const Layer<T>& layer;
    const Arguments& a;
    const int64_t line; /* of the filter, an out channel's */
    const int64_t tile_;
    T* tiles_; /* of each thread: [elements, lanes] weights of the pairs */

    /* Some numbers of an out channel of some pairs. */
    template <int N, bool full>
    EQC_INLINE void sum_elements(const Type<T>& type, const T* values, const T* tile, int last, const Group& group,
                                 int64_t first, int64_t offset) const {
        const int64_t step = type.out_size * type.in_size * a.pixels;
        V sum[together][N] = {};
        for (int64_t b = 0; b < type.elements; ++b) {
            V row[N];
            load_row<T, N, full>(values + b * step, last, row);
            for (int q = 0; q < together; ++q)
                for (int v = 0; v < N; ++v) sum[q][v] += tile[b * lanes + q] * row[v];
        }
        for (int q = 0; q < together; ++q)
            if (first + q < group.count)
                store_row<T, N, full>(layer.filter(group.pairs[first + q]) + offset, last, sum[q], false);
    }

    template <int P>
    void gradients(const Type<T>& type, const Pair* pairs) const {
        int64_t b = 0;
        for (; b + elements <= type.elements; b += elements) sum_block<P, elements>(type, pairs, b);
        for (; b < type.elements; ++b) sum_block<P, 1>(type, pairs, b);
    }

    /* Gradients of the elements from b on, of P pairs. */
    template <int P, int B>
    EQC_INLINE void sum_block(const Type<T>& type, const Pair* pairs, int64_t b) const {
        const int64_t columns = type.in_size * a.pixels, step = type.out_size * columns;
        const T* filter[P];
        for (int q = 0; q < P; ++q) filter[q] = layer.filter(pairs[q]);
        const T* values = type.values + b * step;
        V sum[P][B] = {};
        const auto add = [&](const auto& vector) EQC_INLINE_LAMBDA {
            V basis[B];
            for (int k = 0; k < B; ++k) basis[k] = vector(values + k * step);
            for (int q = 0; q < P; ++q) {
                const V given = vector(filter[q]);
                for (int k = 0; k < B; ++k) sum[q][k] += given * basis[k];
            }
        };
        for (int64_t o = 0; o < type.out_size; ++o) {
            int64_t at = 0;
            for (; at + lanes <= columns; at += lanes)
                add([&](const T* row) EQC_INLINE_LAMBDA { return load(row + at); });
            if (at < columns)
                add([&](const T* row) EQC_INLINE_LAMBDA { return load_first(row + at, int(columns - at)); });
            values += columns;
            for (int q = 0; q < P; ++q) filter[q] += line;
        }
        for (int q = 0; q < P; ++q)
            for (int k = 0; k < B; ++k) {
                T total = 0;
                for (int lane = 0; lane < lanes; ++lane) total += sum[q][k][lane];
                layer.gradient(pairs[q])[b + k] = total;
            }
    }
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
