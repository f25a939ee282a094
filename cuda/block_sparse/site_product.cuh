/* out[row] = bias + sum over taps of gathered[neighbour(row, tap)] matrix[tap], then ReLU: the convolution at a list of
 * sites, and with the transposed weights the gradient of its input. A block computes 64 rows and up to 64 columns. */
#ifndef EQC_BLOCK_SPARSE_SITE_PRODUCT_CUH
#define EQC_BLOCK_SPARSE_SITE_PRODUCT_CUH

#include "neighbours.cuh"
#include "product.cuh"

namespace eqc {

template <class T>
struct SiteProduct {
    Neighbours neighbours;
    Left<T> left;
    Right<T> right;
    const T* bias;       // [columns] or NULL
    T* out;              // [out_rows, columns]
    int64_t rows;        // capacity
    const int32_t* count;
    const int32_t* out_row;  // of row r; NULL: r
    int64_t out_rows;
    bool relu;
    bool vectors_out;
};

/* `count` rows of a list of neighbours. */
struct RowsOfTile {
    const Neighbours& neighbours;
    int64_t first;
    int count;
    __device__ __forceinline__ Neighbours::Seeker seeker(int row) const {
        return neighbours.seeker(first + row, row < count);
    }
    __device__ __forceinline__ int32_t find(const Neighbours::Seeker& from, int tap) const {
        return neighbours.find(from, tap);
    }
};

template <class T, int kColumns>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks)
    site_product(SiteProduct<T> p) {
    using S = Tile<T, kColumns>;
    EQC_SHARED_ARRAY(int32_t, found, S::kTaps * S::kRows);
    EQC_SHARED_ARRAY(unsigned, present, S::kThreads / 32);
    const int64_t row0 = int64_t(blockIdx.x) * S::kRows;
    const int64_t end = entries(p.count, p.rows);
    if (row0 >= end) {
        return;
    }
    const int count = end - row0 < S::kRows ? int(end - row0) : S::kRows;
    p.right.n0 = int(blockIdx.y) * kColumns;
    const S own;
    Sums<T> sums;
    clear<T>(sums);
    const Window<T, kColumns> window{found, present};
    const bool any = accumulate<T, kColumns>(sums, own, RowsOfTile{p.neighbours, row0, count}, p.left, p.right, window,
                                             AsItIs());
    if (any) {
        deposit<T, kColumns>(sums, own, [&](int r) { return own.row + 8 * r; });
    }
    const auto out = eqc_view(p.out, p.out_rows * p.right.columns);
    deposited<T, kColumns>(any, [&](int row, int column, T(&values)[4]) {
        const int n = p.right.n0 + column;
        if (row >= count || n >= p.right.columns) {
            return;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            values[i] += p.bias != nullptr && n + i < p.right.columns ? p.bias[n + i] : T(0);
            values[i] = p.relu ? rectified(values[i]) : values[i];
        }
        const int64_t to = p.out_row == nullptr ? row0 + row : int64_t(p.out_row[row0 + row]);
        store<T, 4>(out + (to * p.right.columns + n), p.vectors_out, p.right.columns - n, values);
    });
}

template <class T>
void launch_site_product(int& status, const SiteProduct<T>& p, cudaStream_t stream) {
    if (p.rows == 0) {
        return;
    }
    with_tile(p.right.columns, [&](auto columns) {
        using S = Tile<T, columns()>;
        const dim3 grid(unsigned(ceil_div(p.rows, S::kRows)), unsigned(ceil_div(p.right.columns, columns())));
        EQC_LAUNCH_CHECKED(status, (site_product<T, columns()>), grid, dim3(S::kThreads), S::kSharedBytes, stream, p);
    });
}

}  // namespace eqc

#endif
