/* Products of float matrices on the processor's matrix unit (AMX), which multiplies bfloat16 and adds in float.
 *
 * A float is the exact sum of three bfloat16: its upper eight bits, the next eight, and the rest. Of the nine products
 * of parts the six largest are formed; what is left out is below 2^-24 of a term, less than a float's own rounding.
 * Numbers below the smallest normal float count as 0, and an infinite one gives NaN.
 *
 * A unit's tile is 16 rows of 16 words; a word holds two neighbours along the summed index. Here neighbours are k and
 * k + 16 of a block of 32, so that two vectors make one of words without shuffling.
 */
#ifndef EQC_TILES_H
#define EQC_TILES_H

#include "simd.h"

#if defined(EQC_ISA_AMX)

namespace eqc {
inline namespace EQC_ISA {

constexpr int tile_side = 16, pair_side = 2 * tile_side, tile_words = tile_side * tile_side, parts = 3;
/* Blocks of 32 terms that are split at a time: 32 rows of them stay in the first-level cache. */
constexpr int64_t chunk_blocks = 4;

using Words = Lanes<uint32_t, tile_side>::type;
using StoredWords = Lanes<uint32_t, tile_side>::unaligned;
using Floats = Vector<float>::type;

/* Splits two vectors and stores the words of part p at to + p * part_step. */
EQC_INLINE void split(Floats low, Floats high, uint32_t* to, int64_t part_step) {
    for (int p = 0; p < parts; ++p) {
        const Words a = reinterpret_cast<Words>(low) & 0xffff0000u, b = reinterpret_cast<Words>(high) & 0xffff0000u;
        *reinterpret_cast<StoredWords*>(to + p * part_step) = a >> 16 | b;
        low -= reinterpret_cast<Floats>(a);
        high -= reinterpret_cast<Floats>(b);
    }
}

EQC_INLINE Floats some_of(const float* p, int64_t n) {
    return n >= tile_side ? load(p) : n > 0 ? load_first(p, int(n)) : Floats{};
}

/* 32 rows of a left factor, [part, row, words of the blocks]. */
struct LeftTiles {
    int64_t step; /* words from row to row; no power of two */
    uint32_t* data;

    static constexpr int64_t count(int64_t blocks) { return parts * pair_side * (blocks + 1) * tile_side; }
    LeftTiles(int64_t blocks, uint32_t* to) : step((blocks + 1) * tile_side), data(to) {}

    /* Row i, of which `inner` numbers are given. */
    EQC_INLINE void set_row(int64_t i, const float* row, int64_t inner) const {
        for (int64_t k = 0; k < inner; k += pair_side)
            split(some_of(row + k, inner - k), some_of(row + k + tile_side, inner - k - tile_side),
                  data + i * step + k / 2, pair_side * step);
    }
    EQC_INLINE void load(int64_t block, int part) const {
        const uint32_t* tile = data + part * pair_side * step + block * tile_side;
        _tile_loadd(4, tile, step * 4);
        _tile_loadd(5, tile + tile_side * step, step * 4);
    }
};

/* 32 columns of a right factor, [block, part, tile of the pair]. */
struct RightTiles {
    uint32_t* data;

    static constexpr int64_t block_words = 2 * parts * tile_words;
    static int64_t blocks(int64_t inner) { return (inner + pair_side - 1) / pair_side; }
    static int64_t count(int64_t inner) { return blocks(inner) * block_words; }

    /* row(k) points to the columns in row k, of which there are `columns`. */
    template <class Row>
    EQC_INLINE void pack(int64_t inner, int64_t columns, const Row& row) const {
        for (int64_t k = 0; k < blocks(inner) * pair_side; k += pair_side)
            for (int64_t j = k; j < k + tile_side; ++j)
                for (int64_t n = 0; n < pair_side; n += tile_side)
                    split(j < inner ? some_of(row(j) + n, columns - n) : Floats{},
                          j + tile_side < inner ? some_of(row(j + tile_side) + n, columns - n) : Floats{},
                          data + k / pair_side * block_words + n * tile_side + (j - k) * tile_side, 2 * tile_words);
    }
    EQC_INLINE void load(int64_t block, int part) const {
        const uint32_t* tile = data + block * block_words + part * 2 * tile_words;
        _tile_loadd(6, tile, 64);
        _tile_loadd(7, tile + tile_words, 64);
    }
};

struct __attribute__((packed)) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/* What was written before is in memory: to the compiler, a tile's loads do not read it. */
EQC_INLINE void written(const void* memory) { __asm__ volatile("" ::"r"(memory) : "memory"); }

/* The unit's registers, set up for pairs of tiles: 0 to 3 are sums of 32 rows and columns. */
class MatrixUnit {
   public:
    MatrixUnit() {
        const TileShapes shapes;
        written(&shapes);
        _tile_loadconfig(&shapes);
    }
    ~MatrixUnit() { _tile_release(); }

    static EQC_INLINE void clear() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    /* Of the sums the first `height` rows and `width` columns are in memory, or all if there are more. */
    EQC_INLINE void load(const float* sums, int64_t step, int64_t height, int64_t width) {
        if (height < pair_side || width < pair_side) {
            for (int64_t i = 0; i < height && i < pair_side; ++i)
                for (int64_t j = 0; j < width && j < pair_side; ++j) edge_[i * pair_side + j] = sums[i * step + j];
            sums = edge_;
            step = pair_side;
        }
        written(sums);
        _tile_loadd(0, sums, step * 4);
        _tile_loadd(1, sums + tile_side, step * 4);
        _tile_loadd(2, sums + tile_side * step, step * 4);
        _tile_loadd(3, sums + tile_side * step + tile_side, step * 4);
    }
    EQC_INLINE void store(float* sums, int64_t step, int64_t height, int64_t width) {
        const bool whole = height >= pair_side && width >= pair_side;
        float* target = whole ? sums : edge_;
        const int64_t target_step = whole ? step : pair_side;
        _tile_stored(0, target, target_step * 4);
        _tile_stored(1, target + tile_side, target_step * 4);
        _tile_stored(2, target + tile_side * target_step, target_step * 4);
        _tile_stored(3, target + tile_side * target_step + tile_side, target_step * 4);
        for (int64_t i = 0; i < height && i < pair_side && !whole; ++i)
            for (int64_t j = 0; j < width && j < pair_side; ++j) sums[i * step + j] = edge_[i * pair_side + j];
    }
    /* sums += left · right over the terms of one block. */
    static EQC_INLINE void add(const LeftTiles& left, const RightTiles& right, int64_t left_block,
                               int64_t right_block) {
        written(left.data);
        left.load(left_block, 0), right.load(right_block, 2), multiply();
        right.load(right_block, 1), multiply();
        right.load(right_block, 0), multiply();
        left.load(left_block, 2), multiply();
        left.load(left_block, 1), multiply();
        right.load(right_block, 1), multiply();
    }

   private:
    static EQC_INLINE void multiply() {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) float edge_[pair_side * pair_side] = {};
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
#endif
