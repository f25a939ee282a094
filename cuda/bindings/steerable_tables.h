/* The tables of a steerable expansion as operators take them, which is cheaper to hand over than each for itself: one
 * array of int32 `words`, which are pairs, out_starts, in_starts, table and permutation one after the other, and one of
 * real numbers `reals`, which are values and harmonic. `sizes` are the first fields of the struct in its order.
 * eqconv_cli/backends/steerable/packed.py has the same.
 */
#ifndef EQC_STEERABLE_TABLES_H
#define EQC_STEERABLE_TABLES_H

#include <array>
#include <string>

#include "../steerable/steerable.h"

namespace eqc {

constexpr size_t expansion_sizes = 11;

/* Sets the sizes; what is wrong with them, empty when nothing is. Starts, first weights and places in the lists are
 * int32, so that no size that means anything has more than 31 bits. */
inline std::string set_sizes(const int64_t* sizes, size_t number, eqc_expansion& a) {
    if (number != expansion_sizes)
        return "sizes has " + std::to_string(number) + " numbers: expected " + std::to_string(expansion_sizes);
    struct Named {
        const char* name;
        int64_t* place;
    };
    const std::array<Named, expansion_sizes> fields = {{
        {"out_fields", &a.out_fields},
        {"in_fields", &a.in_fields},
        {"out_channels", &a.out_channels},
        {"in_channels", &a.in_channels},
        {"pixels", &a.pixels},
        {"harmonics", &a.harmonics},
        {"types", &a.types},
        {"permutations", &a.permutations},
        {"weights_size", &a.weights_size},
        {"table_size", &a.table_size},
        {"values_size", &a.values_size},
    }};
    for (size_t k = 0; k < expansion_sizes; ++k) {
        if (sizes[k] < 0 || sizes[k] > INT32_MAX)
            return std::string("sizes: ") + fields[k].name + " is " + std::to_string(sizes[k]) +
                   ": 0 to 2^31 - 1 is allowed";
        *fields[k].place = sizes[k];
    }
    if (a.types > a.table_size / EQC_ST_RECORD)
        return "sizes: table_size is " + std::to_string(a.table_size) + ": " + std::to_string(a.types) +
               " types have more numbers";
    // Two factors of 31 bits fit into int64, three of them need not.
    const int64_t most_entries = int64_t(1) << 40;
    if (a.pixels > 0 && a.out_channels * a.in_channels > most_entries / a.pixels)
        return "sizes: the filter has more than 2^40 entries";
    return "";
}

/* Points at the tables, whose sizes are set; what is wrong with their lengths, empty when nothing is. */
inline std::string set_tables(const int32_t* words, int64_t words_length, const void* reals, int64_t reals_length,
                              bool wide, eqc_expansion& a) {
    const uint64_t pairs = a.out_fields * a.in_fields;
    const uint64_t starts = a.out_fields + 1 + a.in_fields + 1;
    const uint64_t expected_words = 2 * pairs + starts + a.table_size + a.permutations * a.pixels;
    if (uint64_t(words_length) != expected_words)
        return "words has " + std::to_string(words_length) + " numbers: expected " + std::to_string(expected_words) +
               ", as the sizes say";
    const int64_t expected_reals = a.values_size + a.harmonics * a.pixels;
    if (reals_length != expected_reals)
        return "reals has " + std::to_string(reals_length) + " numbers: expected " + std::to_string(expected_reals) +
               ", as the sizes say";
    a.pairs = words;
    a.out_starts = a.pairs + 2 * pairs;
    a.in_starts = a.out_starts + a.out_fields + 1;
    a.table = a.in_starts + a.in_fields + 1;
    a.permutation = a.table + a.table_size;
    a.values = reals;
    a.harmonic = static_cast<const char*>(reals) + a.values_size * (wide ? sizeof(double) : sizeof(float));
    return "";
}

}  // namespace eqc

#endif
