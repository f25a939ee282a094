/* Products of many tiles of rows with one matrix, and sums of products of two tiles: on the matrix unit where there is
 * one and it pays, else by vector instructions.
 */
#ifndef EQC_RIGHT_FACTOR_H
#define EQC_RIGHT_FACTOR_H

#include <type_traits>

#include "dense.h"
#include "tiles.h"

namespace eqc {
inline namespace EQC_ISA {

/* The matrix unit works on 32 rows, 32 columns and 32 terms at once. */
template <class T>
inline bool unit_pays(int64_t rows, int64_t inner, int64_t columns) {
#if defined(EQC_ISA_AMX)
    return std::is_same<T, float>::value && rows >= 32 && inner >= 32 && columns >= 32;
#else
    return (void)rows, (void)inner, (void)columns, false;
#endif
}

/* A matrix [inner, columns], prepared once; tiles of about `rows` rows are multiplied by it. */
template <class T>
class RightFactor {
   public:
    RightFactor(int64_t rows, int64_t inner, int64_t columns)
        : inner_(inner), columns_(columns), on_unit_(unit_pays<T>(rows, inner, columns)) {}

    /* Numbers of type T that it takes. */
    int64_t count() const {
#if defined(EQC_ISA_AMX)
        if (on_unit_) return (columns_ + pair_side - 1) / pair_side * RightTiles::count(inner_);
#endif
        return Panels<T>::count(inner_, columns_);
    }

    /* row(k) is row k of the matrix. */
    template <class Row>
    void pack(T* to, const Row& row) {
        data_ = to;
#if defined(EQC_ISA_AMX)
        if constexpr (std::is_same<T, float>::value)
            if (on_unit_) {
                for (int64_t n = 0; n < columns_; n += pair_side)
                    tiles(n).pack(inner_, columns_ - n, [&](int64_t k) { return row(k) + n; });
                return;
            }
#endif
        Panels<T>{inner_, columns_, to}.pack(row);
    }

    /* out[rows, columns] = a[rows, inner] · this. */
    void times(int64_t rows, const T* a, int64_t lda, T* out, int64_t ldo) const {
#if defined(EQC_ISA_AMX)
        if constexpr (std::is_same<T, float>::value)
            if (on_unit_) return times_on_unit(rows, a, lda, out, ldo);
#endif
        product<T>(rows, a, lda, Panels<T>{inner_, columns_, data_}, out, ldo);
    }

   private:
#if defined(EQC_ISA_AMX)
    RightTiles tiles(int64_t column) const {
        return {reinterpret_cast<uint32_t*>(data_) + column / pair_side * RightTiles::count(inner_)};
    }

    void times_on_unit(int64_t rows, const float* a, int64_t lda, float* out, int64_t ldo) const {
        alignas(64) uint32_t words[LeftTiles::count(chunk_blocks)];
        const LeftTiles left(chunk_blocks, words);
        const int64_t blocks = RightTiles::blocks(inner_);
        const bool held = columns_ <= pair_side; /* the sums stay in the unit */
        MatrixUnit unit;
        for (int64_t r = 0; r < rows; r += pair_side) {
            const int64_t height = rows - r < pair_side ? rows - r : pair_side;
            for (int64_t k = 0; k < blocks; k += chunk_blocks) {
                const int64_t some = blocks - k < chunk_blocks ? blocks - k : chunk_blocks;
                const int64_t terms = inner_ - k * pair_side, most = some * pair_side;
                for (int64_t i = 0; i < height; ++i)
                    left.set_row(i, a + (r + i) * lda + k * pair_side, terms < most ? terms : most);
                for (int64_t n = 0; n < columns_; n += pair_side) {
                    float* sums = out + r * ldo + n;
                    if (k == 0)
                        unit.clear();
                    else if (!held)
                        unit.load(sums, ldo, height, columns_ - n);
                    for (int64_t b = 0; b < some; ++b) unit.add(left, tiles(n), b, k + b);
                    if (!held || k + some == blocks) unit.store(sums, ldo, height, columns_ - n);
                }
            }
        }
    }
#endif
    int64_t inner_, columns_;
    bool on_unit_;
    T* data_ = nullptr;
};

/* Sums z^T·d over tiles of at most `rows` rows: z [rows, inner], d [rows, columns]. */
template <class T>
class OuterSum {
   public:
    OuterSum(int64_t rows, int64_t inner, int64_t columns)
        : rows_(rows), inner_(inner), columns_(columns), on_unit_(unit_pays<T>(columns, rows, inner)) {}

    /* Numbers of type T that a thread works in. */
    int64_t scratch() const {
#if defined(EQC_ISA_AMX)
        if (on_unit_) return columns_ * rows_ + left_pairs() * LeftTiles::count(blocks()) + RightTiles::count(rows_);
#endif
        return 0;
    }

    /* sum += z^T·d; the unit sums the transpose, because then z need not be turned over. */
    void add(int64_t rows, const T* z, int64_t ldz, const T* d, int64_t ldd, T* scratch, T* sum) const {
#if defined(EQC_ISA_AMX)
        if constexpr (std::is_same<T, float>::value)
            if (on_unit_) return add_on_unit(rows, z, ldz, d, ldd, scratch, sum);
#endif
        (void)scratch;
        product<T>(inner_, columns_, rows, z, 1, ldz, d, ldd, sum, columns_, true);
    }

    /* The sum [inner, columns], from what `add` left. */
    void finish(const T* sum, T* out) const {
        if (on_unit_)
            transpose_matrix<T>(columns_, inner_, sum, inner_, out, columns_);
        else
            std::memcpy(out, sum, size_t(inner_ * columns_) * sizeof(T));
    }

   private:
#if defined(EQC_ISA_AMX)
    int64_t blocks() const { return RightTiles::blocks(rows_); }
    int64_t left_pairs() const { return (columns_ + pair_side - 1) / pair_side; }

    void add_on_unit(int64_t rows, const float* z, int64_t ldz, const float* d, int64_t ldd, float* scratch,
                     float* sum) const {
        uint32_t* words = reinterpret_cast<uint32_t*>(scratch + columns_ * rows_);
        const auto left = [&](int64_t column) {
            return LeftTiles(blocks(), words + column / pair_side * LeftTiles::count(blocks()));
        };
        transpose_matrix<float>(rows, columns_, d, ldd, scratch, rows_);
        for (int64_t j = 0; j < columns_; ++j) left(j).set_row(j % pair_side, scratch + j * rows_, rows);
        const RightTiles right{words + left_pairs() * LeftTiles::count(blocks())};
        const int64_t some = RightTiles::blocks(rows);
        MatrixUnit unit;
        for (int64_t n = 0; n < inner_; n += pair_side) {
            right.pack(rows, inner_ - n, [&](int64_t k) EQC_INLINE_LAMBDA { return z + k * ldz + n; });
            for (int64_t j = 0; j < columns_; j += pair_side) {
                unit.load(sum + j * inner_ + n, inner_, columns_ - j, inner_ - n);
                for (int64_t b = 0; b < some; ++b) unit.add(left(j), right, b, b);
                unit.store(sum + j * inner_ + n, inner_, columns_ - j, inner_ - n);
            }
        }
    }
#endif
    int64_t rows_, inner_, columns_;
    bool on_unit_;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
