/* Checks of the sizes that a call gives. */
#ifndef EQC_SIZES_H
#define EQC_SIZES_H

#include "simd.h"

namespace eqc {
inline namespace EQC_ISA {

EQC_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t largest_position = INT32_MAX;
/* Of an array; more than the address space has room for. */
constexpr int64_t most_numbers = int64_t(1) << 44;

/* Whether a size is negative or the product of those that are not 0 is larger than `most`. */
template <class... Sizes>
inline bool too_many(int64_t most, Sizes... sizes) {
    int64_t product = 1;
    for (int64_t size : {int64_t(sizes)...})
        if (size < 0 || __builtin_mul_overflow(product, larger(size, 1), &product) || product > most) return true;
    return false;
}

}  // namespace EQC_ISA
}  // namespace eqc

#endif
