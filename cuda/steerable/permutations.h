/* Rows of pixels out of permuted rows and back, a vector of pixels at a time.
 *
 * The vectors of a row of the filter are those of its pixels, except that the last one ends with the row and so may
 * share pixels with the one before: rows are read and written without masks. Rows of a tile are padded to whole pairs
 * of vectors. Each vector picks its pixels out of pairs of vectors of the other side.
 */
#ifndef EQC_STEERABLE_PERMUTATIONS_H
#define EQC_STEERABLE_PERMUTATIONS_H

#include "layer.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

#if defined(EQC_ISA_AVX512)
template <class T>
using Places = typename Lanes<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, Vector<T>::lanes>::type;

/* Lane k is lane at[k] of the two vectors. */
template <class T>
EQC_INLINE typename Vector<T>::type picked(typename Vector<T>::type low, typename Vector<T>::type high, Places<T> at) {
    if constexpr (sizeof(T) == 4)
        return reinterpret_cast<typename Vector<T>::type>(_mm512_permutex2var_ps(
            reinterpret_cast<__m512>(low), reinterpret_cast<__m512i>(at), reinterpret_cast<__m512>(high)));
    else
        return reinterpret_cast<typename Vector<T>::type>(_mm512_permutex2var_pd(
            reinterpret_cast<__m512d>(low), reinterpret_cast<__m512i>(at), reinterpret_cast<__m512d>(high)));
}

/* Lanes of `other` where the mask has a bit. */
template <class T>
EQC_INLINE typename Vector<T>::type blended(uint32_t mask, typename Vector<T>::type one,
                                            typename Vector<T>::type other) {
    if constexpr (sizeof(T) == 4)
        return reinterpret_cast<typename Vector<T>::type>(_mm512_mask_blend_ps(
            __mmask16(mask), reinterpret_cast<__m512>(one), reinterpret_cast<__m512>(other)));
    else
        return reinterpret_cast<typename Vector<T>::type>(_mm512_mask_blend_pd(
            __mmask8(mask), reinterpret_cast<__m512d>(one), reinterpret_cast<__m512d>(other)));
}
#endif

template <class T>
class Permutations {
   public:
    static constexpr int lanes = Vector<T>::lanes;
    using V = typename Vector<T>::type;

    Permutations(const Arguments& arguments, Arena& arena)
        : pixels(arguments.pixels), vectors((pixels + lanes - 1) / lanes), pairs((vectors + 1) / 2), a(arguments) {
        inverse_ = arena.take<int32_t>(a.permutations * pixels);
#if defined(EQC_ISA_AVX512)
        places_ = arena.take<Places<T>>(a.permutations * vectors);
        picks_ = arena.take<Pick>(a.permutations * vectors * pairs);
#endif
    }

    const int64_t pixels, vectors, pairs;

    /* From a row of a tile to the next. */
    int64_t step() const { return row_step<T>(pixels); }

    /* For spread(); */
    void prepare_spread() {
        prepare(a.permutation, [&](int64_t v) { return start(v); }, [](int64_t p) { return p; });
    }
    /* and for gather(). */
    void prepare_gather() {
        for (int64_t n = 0; n < a.permutations; ++n)
            for (int64_t p = 0; p < pixels; ++p)
                inverse_[n * pixels + a.permutation[n * pixels + p]] = int32_t(p);
        const int64_t last = (vectors - 1) * lanes;
        prepare(inverse_, [](int64_t v) { return v * lanes; },
                [&](int64_t p) { return p < last ? p : last + p - start(vectors - 1); });
    }

    /* Row q of the filter, first number to(q): sign · rows[q, permutation[p]]. */
    template <class To>
    EQC_INLINE void spread(const Image& image, int64_t count, const T* rows, const To& to) const {
        image.sign < 0 ? spread_signed<true>(image, count, rows, to) : spread_signed<false>(image, count, rows, to);
    }

#if defined(EQC_ISA_AVX512)
    /* Whether in_order() can write rows of so many pixels. */
    bool short_rows() const { return vectors <= 2; }

    /* The images of `count` sources one after the other from `to` on, as they follow each other in the filter. */
    EQC_INLINE void in_order(const Source* sources, int64_t count, const T* rows, T* to) const {
        vectors == 1 ? in_order_of<1>(sources, count, rows, to) : in_order_of<2>(sources, count, rows, to);
    }
    /* The way back: adds entries of the filter to the rows that they are images of. */
    EQC_INLINE void collect(const Source* sources, int64_t count, const T* from, T* rows) const {
        vectors == 1 ? collect_to<1>(sources, count, from, rows) : collect_to<2>(sources, count, from, rows);
    }
#else
    bool short_rows() const { return false; }
    void in_order(const Source*, int64_t, const T*, T*) const {}
    void collect(const Source*, int64_t, const T*, T*) const {}
#endif

    /* rows[q] = the sum over images of sign · row of the filter, first number from(q, image), permuted back. Lanes
     * beyond the pixels may be anything. */
    template <class From>
    EQC_INLINE void gather(const Image* images, int64_t number, int64_t count, const From& from, T* rows) const {
#if defined(EQC_ISA_AVX512)
        if (vectors == 1 || vectors == 2) {
            vectors == 1 ? gather_short<1>(images, number, count, from, rows)
                         : gather_short<2>(images, number, count, from, rows);
            return;
        }
#endif
        if (number == 0) std::memset(rows, 0, size_t(count * step()) * sizeof(T));
        if (number > 0) gather_image<false>(images[0], count, from, rows);
        for (int64_t k = 1; k < number; ++k) gather_image<true>(images[k], count, from, rows);
    }

   private:
    const Arguments& a;
    int32_t* inverse_;

    /* The first pixel of a vector of a row of the filter. */
    EQC_INLINE int64_t start(int64_t v) const { return v < vectors - 1 ? v * lanes : larger(pixels - lanes, 0); }

#if defined(EQC_ISA_AVX512)
    /* A pair of vectors that a vector picks from, and the lanes that it fills; the first pair fills all that no later
     * one does. A pair below 0 ends the list. */
    struct Pick {
        int32_t pair;
        uint32_t mask;
    };
    Places<T>* places_;
    Pick* picks_;

    template <class Start, class Slot>
    void prepare(const int32_t* source, const Start& first, const Slot& slot) {
        Places<T>* places = places_;
        Pick* picks = picks_;
        for (int64_t n = 0; n < a.permutations; ++n, source += pixels)
            for (int64_t v = 0; v < vectors; ++v, ++places, picks += pairs) {
                Places<T> at{};
                int64_t found = 0;
                for (int64_t lane = 0; lane < lanes && first(v) + lane < pixels; ++lane) {
                    const int64_t from = slot(source[first(v) + lane]), pair = from / (2 * lanes);
                    at[lane] = from % (2 * lanes);
                    int64_t k = 0;
                    while (k < found && picks[k].pair != pair) ++k;
                    if (k == found) picks[found++] = {int32_t(pair), 0};
                    picks[k].mask |= 1u << lane;
                }
                if (found < pairs) picks[found].pair = -1;
                *places = at;
            }
    }

    /* How a vector of a permuted row comes about from N pairs of vectors; with N = 0 from any number. */
    template <int N>
    struct Recipe {
        Places<T> places;
        const Pick* picks;
        int64_t number;
        int64_t pair[N + 1];
        uint32_t mask[N + 1];

        EQC_INLINE Recipe(const Places<T>& at, const Pick* given, int64_t most) : places(at), picks(given), number(N) {
            for (int k = 0; k < N; ++k) pair[k] = picks[k].pair, mask[k] = picks[k].mask;
            if (N == 0)
                while (number < most && picks[number].pair >= 0) ++number;
        }
        /* from(k) is pair k of vectors. */
        template <class From>
        EQC_INLINE V vector(const From& from) const {
            V row = from(N ? pair[0] : picks[0].pair, places);
            if (N > 1) row = blended<T>(mask[1 % (N + 1)], row, from(pair[1 % (N + 1)], places));
            if (N > 2) row = blended<T>(mask[2 % (N + 1)], row, from(pair[2 % (N + 1)], places));
            if (N == 0)
                for (int64_t k = 1; k < number; ++k) row = blended<T>(picks[k].mask, row, from(picks[k].pair, places));
            return row;
        }
    };

    /* Calls body(v, recipe) for the vectors of a permuted row. */
    template <class Body>
    EQC_INLINE void for_vectors(int32_t permutation, const Body& body) const {
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t entry = permutation * vectors + v;
            const Pick* picks = picks_ + entry * pairs;
            if (pairs == 1 || picks[1].pair < 0)
                body(v, Recipe<1>(places_[entry], picks, pairs));
            else if (pairs == 2 || picks[2].pair < 0)
                body(v, Recipe<2>(places_[entry], picks, pairs));
            else if (pairs == 3 || picks[3].pair < 0)
                body(v, Recipe<3>(places_[entry], picks, pairs));
            else
                body(v, Recipe<0>(places_[entry], picks, pairs));
        }
    }

    /* What a vector writes beyond a row of less than a vector, the rows behind it write again. */
    template <int N>
    EQC_INLINE void in_order_of(const Source* source, int64_t count, const T* rows, T* to) const {
        /* Stores may be to anything, as far as the compiler knows: what it would load again is here. */
        const int64_t size = pixels, end = size - lanes;
        const Places<T>* const places = places_;
        const int64_t masked = N == 1 ? smaller(count, (lanes - 1) / size) : 0;
        const auto row = [&](int v) EQC_INLINE_LAMBDA {
            V low = load(rows + source->row), high = N == 1 ? low : load(rows + source->row + lanes);
            if (source->sign < 0) low = -low, high = -high;
            return picked<T>(low, high, places[N * source->permutation + v]);
        };
        for (const Source* last = source + (count - masked); source != last; ++source, to += size) {
            store(to, row(0));
            if (N == 2) store(to + end, row(1));
        }
        for (int64_t k = 0; k < masked; ++k, ++source, to += size) store_first(to, row(0), int(size));
    }

    template <int N>
    EQC_INLINE void collect_to(const Source* source, int64_t count, const T* from, T* rows) const {
        const int64_t size = pixels, end = size - lanes;
        const Places<T>* const places = places_;
        const int64_t masked = N == 1 ? smaller(count, (lanes - 1) / size) : 0;
        const auto add = [&](V low, V high) EQC_INLINE_LAMBDA {
            if (source->sign < 0) low = -low, high = -high;
            for (int v = 0; v < N; ++v) {
                T* to = rows + source->row + v * lanes;
                store(to, load(to) + picked<T>(low, high, places[N * source->permutation + v]));
            }
        };
        for (const Source* last = source + (count - masked); source != last; ++source, from += size) {
            const V low = load(from);
            add(low, N == 1 ? low : load(from + end));
        }
        for (int64_t k = 0; k < masked; ++k, ++source, from += size) {
            const V low = load_first(from, int(size));
            add(low, low);
        }
    }

    template <bool negative, class To>
    EQC_INLINE void spread_signed(const Image& image, int64_t count, const T* rows, const To& to) const {
        if (vectors == 2) return spread_pair<negative>(image, count, rows, to);
        for_vectors(image.permutation, [&](int64_t v, const auto& recipe) EQC_INLINE_LAMBDA {
            const int64_t offset = image.offset + start(v);
            const T* row = rows;
            for (int64_t q = 0; q < count; ++q, row += step()) {
                V value = recipe.vector([&](int64_t k, const Places<T>& places) EQC_INLINE_LAMBDA {
                    return picked<T>(load(row + 2 * k * lanes), load(row + (2 * k + 1) * lanes), places);
                });
                if (negative) value = -value;
                if (pixels >= lanes)
                    store(to(q) + offset, value);
                else
                    store_first(to(q) + offset, value, int(pixels));
            }
        });
    }

    /* Rows of two vectors. */
    template <bool negative, class To>
    EQC_INLINE void spread_pair(const Image& image, int64_t count, const T* rows, const To& to) const {
        const Places<T> first = places_[2 * image.permutation], second = places_[2 * image.permutation + 1];
        const int64_t offset = image.offset, end = pixels - lanes;
        for (int64_t q = 0; q < count; ++q, rows += 2 * lanes) {
            V low = load(rows), high = load(rows + lanes);
            if (negative) low = -low, high = -high;
            T* target = to(q) + offset;
            store(target, picked<T>(low, high, first));
            store(target + end, picked<T>(low, high, second));
        }
    }

    /* Vector k of a row of the filter, the last one again beyond it. */
    EQC_INLINE V load_filter(const T* row, int64_t k) const {
        return pixels >= lanes ? load(row + start(k < vectors ? k : vectors - 1)) : load_first(row, int(pixels));
    }

    template <int N, class From>
    EQC_INLINE void gather_short(const Image* images, int64_t number, int64_t count, const From& from, T* rows) const {
        for (int64_t q = 0; q < count; ++q) {
            V sum[N] = {};
            for (int64_t k = 0; k < number; ++k) {
                const T* row = from(q) + images[k].offset;
                const V low = load_filter(row, 0), high = N == 1 ? low : load_filter(row, 1);
                const T sign = T(images[k].sign);
                for (int v = 0; v < N; ++v)
                    sum[v] += sign * picked<T>(low, high, places_[images[k].permutation * N + v]);
            }
            for (int v = 0; v < N; ++v) store(rows + q * step() + v * lanes, sum[v]);
        }
    }

    template <bool add, class From>
    EQC_INLINE void gather_image(const Image& image, int64_t count, const From& from, T* rows) const {
        const T sign = T(image.sign);
        for_vectors(image.permutation, [&](int64_t v, const auto& recipe) EQC_INLINE_LAMBDA {
            T* target = rows + v * lanes;
            for (int64_t q = 0; q < count; ++q, target += step()) {
                const T* row = from(q) + image.offset;
                const V value = recipe.vector([&](int64_t k, const Places<T>& places) EQC_INLINE_LAMBDA {
                    return picked<T>(load_filter(row, 2 * k), load_filter(row, 2 * k + 1), places);
                });
                store(target, add ? load(target) + sign * value : sign * value);
            }
        });
    }
#else
    template <class Start, class Slot>
    void prepare(const int32_t*, const Start&, const Slot&) {}

    template <bool negative, class To>
    EQC_INLINE void spread_signed(const Image& image, int64_t count, const T* rows, const To& to) const {
        const int32_t* from = a.permutation + image.permutation * pixels;
        for (int64_t q = 0; q < count; ++q) {
            T* target = to(q) + image.offset;
            const T* row = rows + q * step();
            for (int64_t p = 0; p < pixels; ++p) target[p] = negative ? -row[from[p]] : row[from[p]];
        }
    }

    template <bool add, class From>
    EQC_INLINE void gather_image(const Image& image, int64_t count, const From& from, T* rows) const {
        const int32_t* source = inverse_ + image.permutation * pixels;
        const T sign = T(image.sign);
        for (int64_t q = 0; q < count; ++q) {
            const T* row = from(q) + image.offset;
            T* target = rows + q * step();
            for (int64_t p = 0; p < pixels; ++p)
                target[p] = add ? target[p] + sign * row[source[p]] : sign * row[source[p]];
        }
    }
#endif
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
