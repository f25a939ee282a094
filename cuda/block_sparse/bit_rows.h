/* A matrix of bits, each row in whole words, and the ordered list of those that are set. */
#ifndef EQC_BLOCK_SPARSE_BIT_ROWS_H
#define EQC_BLOCK_SPARSE_BIT_ROWS_H

#include "../common/parallel.h"
#include "windows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

EQC_INLINE int64_t words_for(int64_t bits) { return (bits + 63) / 64; }
/* The n lowest bits, 0 < n <= 64. */
EQC_INLINE uint64_t lowest(int64_t n) { return ~uint64_t(0) >> (64 - n); }

/* Bits [begin, end) of a row; begin < end. */
EQC_INLINE void set_bits(uint64_t* row, int64_t begin, int64_t end) {
    const int64_t first = begin / 64, last = (end - 1) / 64;
    const uint64_t head = ~uint64_t(0) << begin % 64, tail = lowest((end - 1) % 64 + 1);
    if (first == last) {
        row[first] |= head & tail;
        return;
    }
    row[first] |= head;
    for (int64_t k = first + 1; k < last; ++k) row[k] = ~uint64_t(0);
    row[last] |= tail;
}

/* Whether one of bits [begin, end) is set; a word follows the row. */
EQC_INLINE bool any_bit(const uint64_t* row, int64_t begin, int64_t end) {
    for (; begin < end; begin += 64) {
        const int64_t k = begin / 64;
        const int shift = int(begin % 64);
        const uint64_t word = row[k] >> shift | row[k + 1] << 1 << (63 - shift);
        if (word & lowest(smaller(end - begin, 64))) return true;
    }
    return false;
}

/* Calls body(k) for each bit k that is set, ascending. */
template <class Body>
EQC_INLINE void for_bits(const uint64_t* row, int64_t words, const Body& body) {
    for (int64_t k = 0; k < words; ++k)
        for (uint64_t word = row[k]; word; word &= word - 1) body(64 * k + __builtin_ctzll(word));
}

/* Writes base + k for each bit k that is set; `end` is where the last one's place ends. */
inline void write_positions(const uint64_t* row, int64_t words, int32_t base, int32_t* out, int32_t* end) {
#if defined(EQC_ISA_AVX512)
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t k = 0; k < words; ++k) {
        uint64_t word = row[k];
        for (int32_t at = base + int32_t(64 * k); word; word >>= 16, at += 16) {
            const __mmask16 chosen = __mmask16(word);
            if (!chosen) continue;
            const __m512i found = _mm512_maskz_compress_epi32(chosen, _mm512_add_epi32(_mm512_set1_epi32(at), lanes));
            const int count = __builtin_popcount(chosen);
            /* What is written too much, this row's next ones replace. */
            if (end - out >= 16)
                _mm512_storeu_si512(out, found);
            else
                _mm512_mask_storeu_epi32(out, __mmask16((1u << count) - 1), found);
            out += count;
        }
    }
#else
    (void)end;
    for_bits(row, words, [&](int64_t k) EQC_INLINE_LAMBDA { *out++ = base + int32_t(k); });
#endif
}

struct BitRows {
    int64_t rows, width, words;
    uint64_t* bits;
    int64_t* start; /* [rows + 1] how many are set before each row */

    BitRows(int64_t rows, int64_t width, Arena& arena)
        : rows(rows),
          width(width),
          words(words_for(width)),
          bits(arena.take<uint64_t>(rows * words)),
          start(arena.take<int64_t>(rows + 1)) {}

    uint64_t* row(int64_t i) const { return bits + i * words; }

    /* To be called when the row is complete. */
    void count(int64_t i) const {
        int64_t set = 0;
        for (int64_t k = 0; k < words; ++k) set += __builtin_popcountll(row(i)[k]);
        start[i + 1] = set;
    }
    /* After all rows have been counted: how many there are. */
    int64_t add_up() const {
        start[0] = 0;
        for (int64_t i = 0; i < rows; ++i) start[i + 1] += start[i];
        return start[rows];
    }
    /* Calls body(row, first place, end) for each row that has some. */
    template <class Body>
    void for_rows(int threads, const Body& body) const {
        const int64_t group = grouped(4 * words + (rows ? start[rows] / rows : 0), 16384);
        parallel_for(threads, (rows + group - 1) / group, [&](int64_t item, int) {
            for (int64_t i = item * group; i < smaller(rows, (item + 1) * group); ++i)
                if (start[i] < start[i + 1]) body(i, start[i], start[i + 1]);
        });
    }
    /* The flat positions row * width + column. */
    void write_flat(int threads, int32_t* out) const {
        for_rows(threads, [&](int64_t i, int64_t first, int64_t end) {
            write_positions(row(i), words, int32_t(i * width), out + first, out + end);
        });
    }
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
