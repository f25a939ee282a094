/* exp of an array, in a form that compilers vectorise. Results below the smallest normal number are 0. */
#ifndef EQC_EXPONENTIAL_H
#define EQC_EXPONENTIAL_H

#include "simd.h"

namespace eqc {
inline namespace EQC_ISA {

/* x = n ln 2 + r with |r| <= ln 2 / 2; Taylor's series of exp(r) to an error below half a unit; 2^n by its exponent
 * bits. Adding and subtracting 1.5 * 2^(mantissa bits) rounds to the nearest whole number. */
EQC_INLINE void exponentials(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float value = x[i] < -87.0f ? -87.0f : (x[i] > 88.0f ? 88.0f : x[i]);
        const float whole = (value * 1.44269504f + 12582912.0f) - 12582912.0f;
        const float r = (value - whole * 0.693359375f) + whole * 2.12194440e-4f;
        float sum = 1.0f / 5040;
        sum = sum * r + 1.0f / 720;
        sum = sum * r + 1.0f / 120;
        sum = sum * r + 1.0f / 24;
        sum = sum * r + 1.0f / 6;
        sum = sum * r + 0.5f;
        sum = sum * r + 1.0f;
        sum = sum * r + 1.0f;
        const float biased = whole + (12582912.0f + 127.0f);
        int32_t bits;
        std::memcpy(&bits, &biased, sizeof bits);
        bits = int32_t(uint32_t(bits) << 23);
        float scale;
        std::memcpy(&scale, &bits, sizeof scale);
        x[i] = x[i] < -87.0f ? 0.0f : sum * scale;
    }
}

EQC_INLINE void exponentials(double* x, int64_t count) {
    constexpr double round = 6755399441055744.0;
    for (int64_t i = 0; i < count; ++i) {
        const double value = x[i] < -708.0 ? -708.0 : (x[i] > 709.0 ? 709.0 : x[i]);
        const double whole = (value * 1.4426950408889634 + round) - round;
        const double r = (value - whole * 6.93147180369123816490e-01) - whole * 1.90821492927058770002e-10;
        double sum = 1.0 / 6227020800.0;
        sum = sum * r + 1.0 / 479001600.0;
        sum = sum * r + 1.0 / 39916800.0;
        sum = sum * r + 1.0 / 3628800.0;
        sum = sum * r + 1.0 / 362880.0;
        sum = sum * r + 1.0 / 40320.0;
        sum = sum * r + 1.0 / 5040.0;
        sum = sum * r + 1.0 / 720.0;
        sum = sum * r + 1.0 / 120.0;
        sum = sum * r + 1.0 / 24.0;
        sum = sum * r + 1.0 / 6.0;
        sum = sum * r + 0.5;
        sum = sum * r + 1.0;
        sum = sum * r + 1.0;
        const double biased = whole + (round + 1023.0);
        int64_t bits;
        std::memcpy(&bits, &biased, sizeof bits);
        bits = int64_t(uint64_t(bits) << 52);
        double scale;
        std::memcpy(&scale, &bits, sizeof scale);
        x[i] = x[i] < -708.0 ? 0.0 : sum * scale;
    }
}

}  // namespace EQC_ISA
}  // namespace eqc

#endif
