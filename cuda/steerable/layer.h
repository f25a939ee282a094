/* The table of a layer on the CPU: checked, and the pairs of fields of each type in groups, a lane of a vector each. */
#ifndef EQC_STEERABLE_LAYER_H
#define EQC_STEERABLE_LAYER_H

#include <algorithm>

#include "../common/arena.h"
#include "../common/parallel.h"
#include "../common/sizes.h"
#include "steerable.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

using Arguments = eqc_expansion;

/* An entry of a block as a permuted row. */
struct Image {
    int64_t offset; /* of its first pixel from that of the block, in the filter */
    int32_t permutation;
    int32_t sign;
};

/* Numbers from a row of pixels in a tile to the next: whole pairs of vectors. */
template <class T>
constexpr int64_t row_step(int64_t pixels) {
    return padded(pixels, 2 * Vector<T>::lanes);
}

/* The same from the side of the entry: where in a tile the row is that it is an image of. */
struct Source {
    int32_t row, permutation, sign;
};

template <class T>
struct Type {
    int64_t out_size, in_size, elements, rows, harmonics, slots;
    const int32_t* used;    /* [harmonics, 3] index, slots, first slot */
    const int32_t* element; /* [slots] */
    const int32_t* first;   /* [rows + 1] the first image of each row */
    const T* values;        /* [slots, rows], directly [elements, out size, in size, pixels] */
    Image* images;          /* by rows */
    Source* sources;        /* [out size, in size] */

    Type(const int32_t* record, const Arguments& a)
        : out_size(record[EQC_ST_OUT_SIZE]),
          in_size(record[EQC_ST_IN_SIZE]),
          elements(record[EQC_ST_ELEMENTS]),
          rows(record[EQC_ST_ROWS]),
          harmonics(record[EQC_ST_HARMONICS]),
          slots(record[EQC_ST_SLOTS]),
          used(a.table + record[EQC_ST_LISTS]),
          element(used + 3 * harmonics),
          first(element + slots),
          values(static_cast<const T*>(a.values) + record[EQC_ST_VALUES]),
          images(nullptr),
          sources(nullptr) {}

    const int32_t* image_list() const { return first + rows + 1; }
};

struct Pair {
    int64_t filter; /* its first number */
    int32_t weights, out_size, in_size;
};

/* Pairs of a type, at most one for each lane; type -1 is none. */
struct Group {
    int32_t type, count;
    const Pair* pairs;
};

inline bool direct(const Arguments& a) { return a.flags & EQC_ST_DIRECT; }
inline int64_t filter_size(const Arguments& a) { return a.out_channels * a.in_channels * a.pixels; }

/* Whether a record says something else than where there are lists and values. */
inline bool wrong_record(const Arguments& a, const int32_t* record) {
    for (int k = 0; k < EQC_ST_RECORD; ++k)
        if (record[k] < (k <= EQC_ST_IN_SIZE)) return true;
    const int64_t out = record[EQC_ST_OUT_SIZE], in = record[EQC_ST_IN_SIZE], elements = record[EQC_ST_ELEMENTS];
    const int64_t rows = record[EQC_ST_ROWS], harmonics = record[EQC_ST_HARMONICS], slots = record[EQC_ST_SLOTS];
    if (direct(a))
        return rows || harmonics || slots || too_many(most_numbers, elements, out, in, a.pixels) ||
               record[EQC_ST_VALUES] + elements * out * in * a.pixels > a.values_size;
    return too_many(most_numbers, out, in) || rows > out * in ||
           record[EQC_ST_LISTS] + 3 * harmonics + slots + rows + 1 + 4 * out * in > a.table_size ||
           record[EQC_ST_VALUES] + slots * rows > a.values_size;
}

/* Whether sizes, pointers or records cannot be. What they say is enough to know the size of the workspace. */
inline bool wrong(const Arguments* a) {
    if (!a || a->threads < 0 || too_many(largest_position, a->out_fields, a->in_fields) ||
        too_many(largest_position, a->out_channels) || too_many(largest_position, a->in_channels) ||
        too_many(most_numbers, a->out_channels, a->in_channels, a->pixels) || a->pixels > largest_position ||
        too_many(largest_position, a->harmonics) || too_many(most_numbers, a->harmonics, a->pixels) ||
        too_many(most_numbers, a->permutations, a->pixels) || too_many(largest_position, a->permutations) ||
        too_many(largest_position, a->weights_size) || too_many(largest_position, a->table_size) ||
        too_many(most_numbers, a->values_size) || a->types < 0 || a->types > a->table_size / EQC_ST_RECORD)
        return true;
    if (!a->out_starts || !a->in_starts || (a->out_fields * a->in_fields > 0 && !a->pairs) ||
        (a->types > 0 && !a->table) || (a->values_size > 0 && !a->values) || (a->weights_size > 0 && !a->weights) ||
        (filter_size(*a) > 0 && !a->filter))
        return true;
    /* A vector of a permuted row can pick from all others. */
    if (!direct(*a) && (a->permutations < 1 || too_many(most_numbers, a->permutations, a->pixels, a->pixels) ||
                        (a->pixels > 0 && !a->permutation) || (a->harmonics * a->pixels > 0 && !a->harmonic)))
        return true;
    for (int64_t t = 0; t < a->types; ++t)
        if (wrong_record(*a, a->table + t * EQC_ST_RECORD)) return true;
    return false;
}

inline bool wrong_starts(const int32_t* starts, int64_t fields, int64_t channels) {
    bool descends = starts[0] != 0 || starts[fields] != channels;
    for (int64_t f = 0; f < fields; ++f) descends |= starts[f + 1] < starts[f];
    return descends;
}

/* Whether the first slots of the harmonics do not ascend from 0 to all of them, or a number is out of its range. */
template <class T>
inline bool wrong_slots(const Arguments& a, const Type<T>& type) {
    int64_t slot = 0;
    for (int64_t k = 0; k < type.harmonics; ++k) {
        const int32_t* used = type.used + 3 * k;
        if (used[0] < 0 || used[0] >= a.harmonics || used[1] < 0 || used[2] != slot) return true;
        slot += used[1];
    }
    uint32_t most = 0;
    for (int64_t j = 0; j < type.slots; ++j) most = std::max(most, uint32_t(type.element[j]));
    return slot != type.slots || (type.slots > 0 && most >= type.elements);
}

/* Numbers of the filter that are worth waking a thread for. */
constexpr int64_t worth_a_thread = 1 << 16;

template <class T>
class Layer {
   public:
    static constexpr int lanes = Vector<T>::lanes;

    const Arguments& a;
    int threads;
    int64_t most_elements = 0;

    Layer(const Arguments& arguments, Arena& arena)
        : a(arguments), threads(thread_count(a.threads, filter_size(a) / worth_a_thread + 1)) {
        for (int64_t t = 0; t < a.types; ++t) {
            const int32_t* record = a.table + t * EQC_ST_RECORD;
            const int64_t size = int64_t(record[EQC_ST_OUT_SIZE]) * record[EQC_ST_IN_SIZE];
            /* A type that needs more weights than there are has no pairs. */
            most_elements = larger(most_elements, smaller(record[EQC_ST_ELEMENTS], a.weights_size));
            most_images_ = larger(most_images_, direct(a) ? 0 : size);
            all_images_ += direct(a) ? 0 : size;
        }
        const int64_t pairs = a.out_fields * a.in_fields;
        types_ = arena.take<Type<T>>(a.types);
        images_ = arena.take<Image>(all_images_);
        sources_ = arena.take<Source>(all_images_);
        seen_ = arena.take<uint8_t>(larger(most_images_, a.pixels));
        ends_ = arena.take<int64_t>(a.types + 1);
        pairs_ = arena.take<Pair>(pairs);
        groups_ = arena.take<Group>(pairs);
    }

    /* Whether the table is as the contract says. */
    bool read() {
        if (wrong_starts(a.out_starts, a.out_fields, a.out_channels) ||
            wrong_starts(a.in_starts, a.in_fields, a.in_channels) || !count_pairs())
            return false;
        Image* images = images_;
        for (int64_t t = 0; t < a.types; ++t) {
            Type<T>& type = *new (types_ + t) Type<T>(a.table + t * EQC_ST_RECORD, a);
            if (direct(a)) continue;
            type.images = images;
            type.sources = sources_ + (images - images_);
            if (wrong_slots(a, type) || !read_images(type)) return false;
            images += type.out_size * type.in_size;
        }
        if (!direct(a) && !are_permutations()) return false;
        group_pairs();
        return true;
    }

    int64_t groups() const { return group_count_; }
    const Group& group(int64_t item) const { return groups_[item]; }
    const Type<T>& type(const Group& group) const { return types_[group.type]; }
    const T* weights(const Pair& pair) const { return static_cast<const T*>(a.weights) + pair.weights; }
    T* gradient(const Pair& pair) const { return static_cast<T*>(a.weights) + pair.weights; }
    T* filter(const Pair& pair) const { return static_cast<T*>(a.filter) + pair.filter; }

   private:
    /* ends_[t + 1] counts the pairs of type t. Each weight has one pair, so all pairs have as many as there are. */
    bool count_pairs() {
        std::fill_n(ends_, a.types + 1, 0);
        int64_t weights = 0;
        const int32_t* pair = a.pairs;
        for (int64_t f = 0; f < a.out_fields; ++f) {
            const int32_t out = a.out_starts[f + 1] - a.out_starts[f];
            for (int64_t g = 0; g < a.in_fields; ++g, pair += 2) {
                const int32_t type = pair[0];
                if (type < -1 || type >= a.types) return false;
                ++ends_[type + 1];
                if (type < 0) continue;
                const int32_t* record = a.table + int64_t(type) * EQC_ST_RECORD;
                if (record[EQC_ST_OUT_SIZE] != out || record[EQC_ST_IN_SIZE] != a.in_starts[g + 1] - a.in_starts[g] ||
                    pair[1] < 0 || int64_t(pair[1]) + record[EQC_ST_ELEMENTS] > a.weights_size)
                    return false;
                weights += record[EQC_ST_ELEMENTS];
            }
        }
        return weights == a.weights_size;
    }

    /* Whether each entry of the block is the image of one row. */
    bool read_images(const Type<T>& type) const {
        const int64_t size = type.out_size * type.in_size;
        const int32_t* first = type.first;
        bool descends = first[0] != 0 || first[type.rows] != size;
        for (int64_t r = 0; r < type.rows; ++r) descends |= first[r + 1] < first[r];
        if (descends) return false;
        std::memset(seen_, 0, size_t(size));
        const int32_t* image = type.image_list();
        int32_t row = 0;
        for (int64_t k = 0; k < size; ++k, image += 4) {
            const int64_t o = image[0], i = image[1];
            while (first[row + 1] <= k) ++row;
            if (o < 0 || o >= type.out_size || i < 0 || i >= type.in_size || (image[2] != 1 && image[2] != -1) ||
                image[3] < 0 || image[3] >= a.permutations || seen_[o * type.in_size + i])
                return false;
            seen_[o * type.in_size + i] = 1;
            type.images[k] = {(o * a.in_channels + i) * a.pixels, image[3], image[2]};
            type.sources[o * type.in_size + i] = {int32_t(row * row_step<T>(a.pixels)), image[3], image[2]};
        }
        return true;
    }

    /* Whether each permutation has every pixel once, and the first has all in their places. */
    bool are_permutations() const {
        for (int64_t n = 0; n < a.permutations; ++n) {
            const int32_t* permutation = a.permutation + n * a.pixels;
            std::memset(seen_, 0, size_t(a.pixels));
            for (int64_t p = 0; p < a.pixels; ++p) {
                const int32_t from = permutation[p];
                if (from < 0 || from >= a.pixels || seen_[from] || (n == 0 && from != p)) return false;
                seen_[from] = 1;
            }
        }
        return true;
    }

    int64_t groups_of(int64_t width) const {
        int64_t groups = 0;
        for (int64_t t = 0; t <= a.types; ++t) groups += (ends_[t] + width - 1) / width;
        return groups;
    }

    /* The pairs of a type in their order, and groups of them: of fewer pairs when threads would have nothing to do. */
    void group_pairs() {
        int64_t width = lanes;
        while (threads > 1 && width > 4 && groups_of(width) < 2 * threads) width /= 2;
        group_count_ = 0;
        int64_t first = 0;
        for (int64_t t = 0; t <= a.types; ++t) {
            const int64_t count = ends_[t];
            for (int64_t at = 0; at < count; at += width)
                groups_[group_count_++] = {int32_t(t - 1), int32_t(smaller(width, count - at)), pairs_ + first + at};
            ends_[t] = first;
            first += count;
        }
        const int32_t* pair = a.pairs;
        for (int64_t f = 0; f < a.out_fields; ++f) {
            const int64_t row = a.out_starts[f] * a.in_channels;
            const int32_t out = a.out_starts[f + 1] - a.out_starts[f];
            for (int64_t g = 0; g < a.in_fields; ++g, pair += 2)
                pairs_[ends_[pair[0] + 1]++] = {(row + a.in_starts[g]) * a.pixels, pair[1], out,
                                                a.in_starts[g + 1] - a.in_starts[g]};
        }
    }

    int64_t most_images_ = 0, all_images_ = 0, group_count_ = 0;
    Type<T>* types_;
    Image* images_;
    Source* sources_;
    uint8_t* seen_;
    int64_t* ends_;
    Pair* pairs_;
    Group* groups_;
};

/* tile[b, q] = weights of pair q of the group, 0 in lanes without a pair; tile has whole vectors of elements. */
template <class T>
inline void load_weights(const Layer<T>& layer, const Group& group, int64_t elements, T* tile) {
    constexpr int lanes = Vector<T>::lanes;
    for (int64_t b = 0; b < elements; b += lanes, tile += lanes * lanes) {
        typename Vector<T>::type square[lanes] = {};
        for (int q = 0; q < group.count; ++q) {
            const T* from = layer.weights(group.pairs[q]) + b;
            square[q] = elements - b >= lanes ? load(from) : load_first(from, int(elements - b));
        }
        transpose(square);
        for (int k = 0; k < lanes; ++k) store(tile + k * lanes, square[k]);
    }
}

/* The way back. */
template <class T>
inline void store_weights(const Layer<T>& layer, const Group& group, int64_t elements, const T* tile) {
    constexpr int lanes = Vector<T>::lanes;
    for (int64_t b = 0; b < elements; b += lanes, tile += lanes * lanes) {
        typename Vector<T>::type square[lanes];
        for (int k = 0; k < lanes; ++k) square[k] = load(tile + k * lanes);
        transpose(square);
        for (int q = 0; q < group.count; ++q) {
            T* to = layer.gradient(group.pairs[q]) + b;
            if (elements - b >= lanes)
                store(to, square[q]);
            else
                store_first(to, square[q], int(elements - b));
        }
    }
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
