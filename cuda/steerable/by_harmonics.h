/* Expansion by harmonics on the CPU, for a group of pairs of one type, and its transpose.
 *
 * Sums over slots have the pairs in the lanes, so they are as fast for one row as for many. Sums over harmonics have
 * pixels in the lanes, and sums over pixels harmonics; each is the same for rows of one pair and of many. Between them
 * are tiles that stay in the first-level cache.
 */
#ifndef EQC_STEERABLE_BY_HARMONICS_H
#define EQC_STEERABLE_BY_HARMONICS_H

#include "layer.h"
#include "permutations.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

template <class T>
class ByHarmonics {
   public:
    static constexpr int lanes = Vector<T>::lanes;
    using V = typename Vector<T>::type;

    ByHarmonics(const Layer<T>& given, Arena& arena)
        : layer(given),
          a(given.a),
          permutations(a, arena),
          stride(padded(a.harmonics, lanes)),
          block(a.harmonics * most_block * int64_t(sizeof(V)) <= 16384 ? most_block : most_block / 2),
          elements(padded(layer.most_elements, lanes)) {
        by_pixel_ = arena.take<T>(a.pixels * stride);
        by_harmonic_ = arena.take<T>(a.harmonics * permutations.vectors * lanes);
        int64_t most_used = stride;
        for (int64_t t = 0; t < a.types; ++t)
            most_used = larger(most_used, a.table[t * EQC_ST_RECORD + EQC_ST_HARMONICS]);
        tile_ = elements * lanes;
        coefficients_ = most_used * block * lanes;
        rows_ = lanes * permutations.step();
        for (int64_t t = 0; t < a.types; ++t) {
            const int64_t rows = a.table[t * EQC_ST_RECORD + EQC_ST_ROWS];
            if (!at_once(rows, a.table[t * EQC_ST_RECORD + EQC_ST_HARMONICS])) continue;
            const int64_t used = a.table[t * EQC_ST_RECORD + EQC_ST_HARMONICS];
            coefficients_ = larger(coefficients_, larger(used, stride) * rows * lanes);
            rows_ = larger(rows_, rows * (permutations.step() + lanes * stride));
        }
        room_ = arena.take<T>(layer.threads * (tile_ + coefficients_ + rows_));
    }

    void prepare_forward() {
        const int64_t width = permutations.vectors * lanes;
        const T* from = static_cast<const T*>(a.harmonic);
        for (int64_t k = 0; k < a.harmonics; ++k) {
            std::memcpy(by_harmonic_ + k * width, from + k * a.pixels, size_t(a.pixels) * sizeof(T));
            std::fill(by_harmonic_ + k * width + a.pixels, by_harmonic_ + (k + 1) * width, T(0));
        }
        permutations.prepare_spread();
    }
    void prepare_backward() {
        std::fill_n(by_pixel_, a.pixels * stride, T(0));
        transpose_matrix(a.harmonics, a.pixels, static_cast<const T*>(a.harmonic), a.pixels, by_pixel_, stride);
        permutations.prepare_gather();
    }

    void forward(const Group& group, int thread) const {
        const Type<T>& type = layer.type(group);
        const Room room = room_of(thread);
        load_weights(layer, group, type.elements, room.tile);
        if (at_once(type.rows, type.harmonics)) return all_rows(type, group, room);
        for (int64_t first = 0; first < type.rows; first += block) {
            const int64_t count = smaller(block, type.rows - first);
            sum_slots(type, first, count, room);
            for (int64_t q = 0; q < group.count; q += together) {
                const int64_t some = smaller(together, group.count - q);
                const auto to = [&](int64_t k) EQC_INLINE_LAMBDA { return layer.filter(group.pairs[q + k]); };
                for (int64_t r = 0; r < count; ++r) {
                    sum_harmonics(type, room.coefficients + r * lanes + q, count * lanes, room.rows);
                    const Image* end = type.images + type.first[first + r + 1];
                    for (const Image* image = type.images + type.first[first + r]; image != end; ++image)
                        permutations.spread(*image, some, room.rows, to);
                }
            }
        }
    }

    void backward(const Group& group, int thread) const {
        const Type<T>& type = layer.type(group);
        const Room room = room_of(thread);
        if (at_once(type.rows, type.harmonics)) return from_all_rows(type, group, room);
        std::fill_n(room.tile, padded(type.elements, lanes) * lanes, T(0));
        std::fill_n(room.rows + group.count * permutations.step(), (lanes - group.count) * permutations.step(), T(0));
        const auto from = [&](int64_t q) EQC_INLINE_LAMBDA { return layer.filter(group.pairs[q]); };
        for (int64_t first = 0; first < type.rows; first += block) {
            const int64_t count = smaller(block, type.rows - first);
            for (int64_t r = 0; r < count; ++r) {
                const int32_t image = type.first[first + r];
                permutations.gather(type.images + image, type.first[first + r + 1] - image, group.count, from,
                                    room.rows);
                sum_pixels(group.count, room.rows, room.coefficients + r * lanes, count * lanes);
            }
            sum_rows(type, first, count, room);
        }
        store_weights(layer, group, type.elements, room.tile);
    }

   private:
    static constexpr int most_block = 16;
    /* Bytes of coefficients and of rows that are worth keeping: a part of the second-level cache. */
    static constexpr int64_t most_kept = 1 << 18;
#if defined(EQC_ISA_AVX512)
    static constexpr int registers = 16;
#else
    static constexpr int registers = 8;
#endif
    /* Pairs whose filters are written by turns. */
    static constexpr int together = registers / 2 < lanes ? registers / 2 : lanes;

    /* A thread's part of the workspace. */
    struct Room {
        T* tile;         /* [elements, lanes] weights, or their gradients, of the pairs */
        T* coefficients; /* [harmonics, rows of the block, lanes] */
        T* rows;         /* [lanes, pixels in whole pairs of vectors] */
    };

    const Layer<T>& layer;
    const Arguments& a;
    Permutations<T> permutations;
    const int64_t stride;   /* harmonics in whole vectors */
    const int64_t block;    /* rows whose coefficients are in the cache */
    const int64_t elements; /* of a type, at most, in whole vectors */
    T* by_pixel_;           /* [pixels, stride] */
    T* by_harmonic_;        /* [harmonics, pixels in whole vectors] */
    T* room_;
    int64_t tile_, coefficients_, rows_;

    Room room_of(int thread) const {
        T* tile = room_ + thread * (tile_ + coefficients_ + rows_);
        return {tile, tile + tile_, tile + tile_ + coefficients_};
    }

    /* Whether all rows of a pair are made before the first is written: then the filter is written in its own order. */
    bool at_once(int64_t rows, int64_t harmonics) const {
        const int64_t numbers = larger(lanes * larger(harmonics, stride), permutations.step());
        return permutations.short_rows() && !too_many(most_kept / int64_t(sizeof(T)), rows, numbers);
    }

    void all_rows(const Type<T>& type, const Group& group, const Room& room) const {
        sum_slots(type, 0, type.rows, room);
        const int64_t between = a.in_channels * a.pixels;
        for (int64_t q = 0; q < group.count; ++q) {
            rows_of_pair(type, room.coefficients + q, room.rows);
            T* to = layer.filter(group.pairs[q]);
            for (int64_t o = 0; o < type.out_size; ++o, to += between)
                permutations.in_order(type.sources + o * type.in_size, type.in_size, room.rows, to);
        }
    }

    void from_all_rows(const Type<T>& type, const Group& group, const Room& room) const {
        T* by_pair = room.rows + type.rows * permutations.step(); /* [rows, lanes, stride] */
        if (group.count < lanes) std::fill_n(by_pair, type.rows * lanes * stride, T(0));
        for (int64_t q = 0; q < group.count; ++q) {
            std::fill_n(room.rows, type.rows * permutations.step(), T(0));
            const T* from = layer.filter(group.pairs[q]);
            for (int64_t o = 0; o < type.out_size; ++o, from += a.in_channels * a.pixels)
                permutations.collect(type.sources + o * type.in_size, type.in_size, from, room.rows);
            pixels_of_pair(type.rows, room.rows, by_pair + q * stride);
        }
        for (int64_t r = 0; r < type.rows; ++r)
            for (int64_t k = 0; k < a.harmonics; k += lanes) {
                V square[lanes];
                for (int q = 0; q < lanes; ++q) square[q] = load(by_pair + (r * lanes + q) * stride + k);
                transpose(square);
                for (int lane = 0; lane < lanes; ++lane)
                    store(room.coefficients + ((k + lane) * type.rows + r) * lanes, square[lane]);
            }
        std::fill_n(room.tile, padded(type.elements, lanes) * lanes, T(0));
        sum_rows(type, 0, type.rows, room);
        store_weights(layer, group, type.elements, room.tile);
    }

    /* to[r, k] = sum over p of rows[r, p] · harmonic[k, p] for all rows of a pair, `lanes` strides from row to row */
    void pixels_of_pair(int64_t left, const T* rows, T* to) const {
        const auto some = [&](auto R) EQC_INLINE_LAMBDA {
            for (int64_t k = 0; k < a.harmonics; k += lanes) {
                V sum[R()] = {};
                for (int64_t p = 0; p < a.pixels; ++p) {
                    const V harmonic = load(by_pixel_ + p * stride + k);
                    for (int r = 0; r < R(); ++r) sum[r] += rows[r * permutations.step() + p] * harmonic;
                }
                for (int r = 0; r < R(); ++r) store(to + r * lanes * stride + k, sum[r]);
            }
            rows += R() * permutations.step(), to += R() * lanes * stride, left -= R();
        };
        while (left >= 8) some(std::integral_constant<int, 8>());
        if (left >= 4) some(std::integral_constant<int, 4>());
        if (left >= 2) some(std::integral_constant<int, 2>());
        if (left >= 1) some(std::integral_constant<int, 1>());
    }

    /* rows[r, p] = sum over k of coefficients[k, r] · harmonic[index(k), p] for all rows of a pair */
    void rows_of_pair(const Type<T>& type, const T* coefficients, T* rows) const {
        int64_t left = type.rows;
        const auto some = [&](auto R) EQC_INLINE_LAMBDA {
            permutations.vectors == 1 ? rows_of<R(), 1>(type, coefficients, rows)
                                      : rows_of<R(), 2>(type, coefficients, rows);
            coefficients += R() * lanes, rows += R() * permutations.step(), left -= R();
        };
        while (left >= 8) some(std::integral_constant<int, 8>());
        if (left >= 4) some(std::integral_constant<int, 4>());
        if (left >= 2) some(std::integral_constant<int, 2>());
        if (left >= 1) some(std::integral_constant<int, 1>());
    }

    template <int R, int N>
    EQC_INLINE void rows_of(const Type<T>& type, const T* coefficients, T* rows) const {
        V sum[R][N] = {};
        for (int64_t k = 0; k < type.harmonics; ++k, coefficients += type.rows * lanes) {
            const T* harmonic = by_harmonic_ + type.used[3 * k] * (N * lanes);
            V values[N];
            for (int v = 0; v < N; ++v) values[v] = load(harmonic + v * lanes);
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < N; ++v) sum[r][v] += coefficients[r * lanes] * values[v];
        }
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < N; ++v) store(rows + r * permutations.step() + v * lanes, sum[r][v]);
    }

    template <int R>
    static EQC_INLINE void sum_slots_of(int64_t slots, const int32_t* element, const T* values, int64_t step,
                                        const T* tile, T* to) {
        V sum[R] = {};
        for (int64_t j = 0; j < slots; ++j, values += step) {
            const V weights = load(tile + element[j] * int64_t(lanes));
            for (int r = 0; r < R; ++r) sum[r] += values[r] * weights;
        }
        for (int r = 0; r < R; ++r) store(to + r * lanes, sum[r]);
    }

    /* coefficients[k, r] = sum over the slots j of harmonic k of tile[element(j)] · value[j, first + r] */
    void sum_slots(const Type<T>& type, int64_t first, int64_t count, const Room& room) const {
        T* to = room.coefficients;
        for (int64_t k = 0; k < type.harmonics; ++k) {
            const int32_t* used = type.used + 3 * k;
            const int32_t* element = type.element + used[2];
            const T* values = type.values + used[2] * type.rows + first;
            int64_t left = count;
            const auto rows = [&](auto R) EQC_INLINE_LAMBDA {
                sum_slots_of<R()>(used[1], element, values, type.rows, room.tile, to);
                to += R() * lanes, values += R(), left -= R();
            };
            while (left >= registers) rows(std::integral_constant<int, registers>());
            if (left >= 8) rows(std::integral_constant<int, 8>());
            if (left >= 4) rows(std::integral_constant<int, 4>());
            if (left >= 2) rows(std::integral_constant<int, 2>());
            if (left >= 1) rows(std::integral_constant<int, 1>());
        }
    }

    template <int R, int N>
    EQC_INLINE void sum_harmonics_of(const Type<T>& type, const T* coefficients, int64_t step, const T* harmonic,
                                     T* to) const {
        const int64_t width = permutations.vectors * lanes;
        V sum[R][N] = {};
        for (int64_t k = 0; k < type.harmonics; ++k, coefficients += step) {
            V values[N];
            for (int v = 0; v < N; ++v) values[v] = load(harmonic + type.used[3 * k] * width + v * lanes);
            for (int q = 0; q < R; ++q)
                for (int v = 0; v < N; ++v) sum[q][v] += coefficients[q] * values[v];
        }
        for (int q = 0; q < R; ++q)
            for (int v = 0; v < N; ++v) store(to + q * permutations.step() + v * lanes, sum[q][v]);
    }

    /* rows[q, p] = sum over k of coefficients[k, q] · harmonic[index(k), p] for one row of `together` pairs */
    void sum_harmonics(const Type<T>& type, const T* coefficients, int64_t step, T* rows) const {
        for (int64_t v = 0; v < permutations.vectors; v += 2) {
            const T* harmonic = by_harmonic_ + v * lanes;
            T* to = rows + v * lanes;
            v + 1 < permutations.vectors ? sum_harmonics_of<together, 2>(type, coefficients, step, harmonic, to)
                                         : sum_harmonics_of<together, 1>(type, coefficients, step, harmonic, to);
        }
    }

    template <int R>
    EQC_INLINE void sum_pixels_of(const T* rows, T* coefficients, int64_t step) const {
        for (int64_t k = 0; k < a.harmonics; k += lanes) {
            V sum[lanes] = {};
            for (int64_t p = 0; p < a.pixels; ++p) {
                const V harmonic = load(by_pixel_ + p * stride + k);
                for (int q = 0; q < R; ++q) sum[q] += rows[q * permutations.step() + p] * harmonic;
            }
            transpose(sum);
            for (int lane = 0; lane < lanes; ++lane) store(coefficients + (k + lane) * step, sum[lane]);
        }
    }

    /* coefficients[k, q] = sum over p of rows[q, p] · harmonic[k, p] for one row of every pair */
    void sum_pixels(int64_t pairs, const T* rows, T* coefficients, int64_t step) const {
        if (pairs > lanes / 2)
            sum_pixels_of<lanes>(rows, coefficients, step);
        else
            sum_pixels_of<lanes / 2>(rows, coefficients, step);
    }

    template <int S>
    static EQC_INLINE void sum_rows_of(int64_t count, const int32_t* element, const T* values, int64_t step,
                                       const T* coefficients, T* tile) {
        V sum[S] = {};
        for (int64_t r = 0; r < count; ++r) {
            const V row = load(coefficients + r * lanes);
            for (int j = 0; j < S; ++j) sum[j] += values[j * step + r] * row;
        }
        for (int j = 0; j < S; ++j) {
            T* to = tile + element[j] * int64_t(lanes);
            store(to, load(to) + sum[j]);
        }
    }

    /* tile[element(j)] += sum over r of value[j, first + r] · coefficients[index(k), r] for slots j of harmonic k */
    void sum_rows(const Type<T>& type, int64_t first, int64_t count, const Room& room) const {
        for (int64_t k = 0; k < type.harmonics; ++k) {
            const int32_t* used = type.used + 3 * k;
            const int32_t* element = type.element + used[2];
            const T* values = type.values + used[2] * type.rows + first;
            const T* from = room.coefficients + used[0] * count * lanes;
            int64_t left = used[1];
            const auto slots = [&](auto S) EQC_INLINE_LAMBDA {
                sum_rows_of<S()>(count, element, values, type.rows, from, room.tile);
                element += S(), values += S() * type.rows, left -= S();
            };
            while (left >= 8) slots(std::integral_constant<int, 8>());
            if (left >= 4) slots(std::integral_constant<int, 4>());
            if (left >= 2) slots(std::integral_constant<int, 2>());
            if (left >= 1) slots(std::integral_constant<int, 1>());
        }
    }
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
