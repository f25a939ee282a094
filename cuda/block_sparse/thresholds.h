/* Rows of masks: which numbers are above a tolerance, and sums of columns. */
#ifndef EQC_BLOCK_SPARSE_THRESHOLDS_H
#define EQC_BLOCK_SPARSE_THRESHOLDS_H

#include "bit_rows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

/* Comparisons are in float; a number of a double mask is rounded to it first. */
class Threshold {
   public:
    explicit Threshold(double tolerance)
        : tolerance_(float(tolerance)),
          zero_(0.0f > tolerance_ ? ~uint64_t(0) : 0),
          one_(1.0f > tolerance_ ? ~uint64_t(0) : 0) {}

    bool reached(double mean) const { return float(mean) > tolerance_; }

    /* Bit k of the row of words: whether m[k] is above the tolerance. */
    template <class Source>
    void row(const Source* m, int64_t width, uint64_t* words) const {
        int64_t at = 0;
        for (; at + 64 <= width; at += 64) *words++ = word(m + at);
        if (at == width) return;
        Source rest[64] = {};
        std::memcpy(rest, m + at, size_t(width - at) * sizeof(Source));
        *words = word(rest) & lowest(width - at);
    }

   private:
    template <class Source>
    EQC_INLINE uint64_t word(const Source* m) const {
        constexpr int piece = pieces<Source>();
        uint64_t word = 0;
#pragma GCC unroll 8
        for (int k = 0; k < 64; k += piece) word |= above(m + k) << k;
        return word;
    }

    EQC_INLINE uint64_t one_above(float m) const { return m > tolerance_; }
    EQC_INLINE uint64_t one_above(double m) const { return float(m) > tolerance_; }
    EQC_INLINE uint64_t one_above(uint8_t m) const { return (m ? one_ : zero_) & 1; }
    /* Zeros and ones, where bits tell which are not 0. */
    EQC_INLINE uint64_t of_bytes(uint64_t bits) const { return (bits & one_) | (~bits & zero_); }

#if defined(EQC_ISA_AVX512)
    template <class Source>
    static constexpr int pieces() {
        return 64 / int(sizeof(Source));
    }
    EQC_INLINE uint64_t above(const float* m) const {
        return _mm512_cmp_ps_mask(_mm512_loadu_ps(m), _mm512_set1_ps(tolerance_), _CMP_GT_OQ);
    }
    EQC_INLINE uint64_t above(const double* m) const {
        return _mm256_cmp_ps_mask(_mm512_maskz_cvtpd_ps(0xff, _mm512_loadu_pd(m)), _mm256_set1_ps(tolerance_),
                                  _CMP_GT_OQ);
    }
    EQC_INLINE uint64_t above(const uint8_t* m) const {
        const __m512i bytes = _mm512_loadu_si512(m);
        return of_bytes(_mm512_test_epi8_mask(bytes, bytes));
    }
#elif defined(EQC_ISA_AVX2)
    template <class Source>
    static constexpr int pieces() {
        return 32 / int(sizeof(Source));
    }
    EQC_INLINE uint64_t above(const float* m) const {
        return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(m), _mm256_set1_ps(tolerance_), _CMP_GT_OQ)));
    }
    EQC_INLINE uint64_t above(const double* m) const {
        return unsigned(_mm_movemask_ps(_mm_cmpgt_ps(_mm256_cvtpd_ps(_mm256_loadu_pd(m)), _mm_set1_ps(tolerance_))));
    }
    EQC_INLINE uint64_t above(const uint8_t* m) const {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(m));
        const __m256i zeros = _mm256_cmpeq_epi8(bytes, _mm256_setzero_si256());
        return of_bytes(uint32_t(~_mm256_movemask_epi8(zeros))) & 0xffffffffu;
    }
#else
    template <class Source>
    static constexpr int pieces() {
        return 8;
    }
    template <class Source>
    EQC_INLINE uint64_t above(const Source* m) const {
        uint64_t bits = 0;
        for (int k = 0; k < 8; ++k) bits |= one_above(m[k]) << k;
        return bits;
    }
#endif

    float tolerance_;
    uint64_t zero_, one_; /* all bits: whether 0 and 1 are above the tolerance */
};

/* Eight numbers, rounded to float. */
template <class Source>
EQC_INLINE Eight<double> eight_values(const Source* m) {
    using Given = typename Lanes<Source, 8>::unaligned;
    const Eight<float> rounded = __builtin_convertvector(*reinterpret_cast<const Given*>(m), Eight<float>);
    return __builtin_convertvector(rounded, Eight<double>);
}
#if defined(EQC_ISA_AVX512) || defined(EQC_ISA_AVX2)
/* The compiler converts bytes one at a time. */
template <>
EQC_INLINE Eight<double> eight_values(const uint8_t* m) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(m)));
    return __builtin_convertvector(reinterpret_cast<Eight<int32_t>>(wide), Eight<double>);
}
#endif

/* sums[x] = m[0, x] + m[1, x] + ... of the numbers rounded to float. */
template <class Source>
void column_sums(const Source* m, int64_t rows, int64_t width, double* sums) {
    int64_t x = 0;
    for (; x + 32 <= width; x += 32) {
        Eight<double> sum[4] = {};
        for (int64_t y = 0; y < rows; ++y)
            for (int k = 0; k < 4; ++k) sum[k] += eight_values(m + y * width + x + 8 * k);
        for (int k = 0; k < 4; ++k) store8(sums + x + 8 * k, sum[k]);
    }
    for (; x + 8 <= width; x += 8) {
        Eight<double> sum = {};
        for (int64_t y = 0; y < rows; ++y) sum += eight_values(m + y * width + x);
        store8(sums + x, sum);
    }
    for (; x < width; ++x) {
        double sum = 0;
        for (int64_t y = 0; y < rows; ++y) sum += double(float(m[y * width + x]));
        sums[x] = sum;
    }
}

EQC_INLINE double sum_of(const double* values, int64_t n) {
    Eight<double> parts = {};
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) parts += load8(values + k);
    double sum = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
    for (; k < n; ++k) sum += values[k];
    return sum;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
