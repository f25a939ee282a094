/* What a block of threads does to multiply 64 gathered rows by kColumns columns of a matrix, in the type itself (FMA).
 *
 * The summed index k runs over taps and channels together, k = tap * channels + channel, so that the weights [taps,
 * C, K] are one matrix and few channels waste nothing. Slabs of k go through shared memory, two of each operand, the
 * next on its way while one is multiplied. A thread has 8 rows x 4 columns. With few columns several teams of threads
 * share the 64 rows, each with its part of every slab; in the end their sums are added in the order of the teams.
 */
#ifndef EQC_BLOCK_SPARSE_PRODUCT_CUH
#define EQC_BLOCK_SPARSE_PRODUCT_CUH

#include <type_traits>

#include "../common/device.cuh"

namespace eqc {

template <class T, int kColumns>
struct Tile {
    static constexpr int kWidth = Vector16<T>::width;
    static constexpr int kRows = 64;
    static constexpr int kDown = 8;    // rows of a thread
    static constexpr int kAcross = 4;  // columns of a thread
    static constexpr int kTeam = kRows / kDown * (kColumns / kAcross);
    static constexpr int kTeams = kColumns <= 8 ? 8 : kColumns <= 32 ? 4 : 2;
    static constexpr int kThreads = kTeam * kTeams;
    static constexpr int kBlocks = sizeof(T) == 4 ? (511 + kThreads) / kThreads : 2;  // at least, on a multiprocessor
    static constexpr int kDepth = 128 / int(sizeof(T));  // of a slab
    static constexpr int kShare = kDepth / kTeams;       // of these, a team's
    static constexpr int kPitch = kDepth + kWidth;       // a 16-byte step of bank from row to row
    static constexpr int kLeft = kRows * kPitch;         // elements of a slab of each operand
    static constexpr int kRight = kDepth * kColumns;
    static constexpr size_t kSharedBytes = sizeof(T) * 2 * (kLeft + kRight);
    static constexpr int kTaps = 32;  // whose neighbours are in shared memory at a time
    static_assert(kShare % kWidth == 0 && kThreads % 64 == 0, "teams that share a slab evenly");
    static_assert(sizeof(T) * kRows * kColumns <= kSharedBytes, "the sums take the place of the slabs");

    static __device__ __forceinline__ eqc_shared_ptr<T> left(int which) {
        return eqc_dynamic_shared<T>(sizeof(T) * which * kLeft);
    }
    static __device__ __forceinline__ eqc_shared_ptr<T> right(int which) {
        return eqc_dynamic_shared<T>(sizeof(T) * (2 * kLeft + which * kRight));
    }
    static __device__ __forceinline__ eqc_shared_ptr<T> sums() { return eqc_dynamic_shared<T>(0); }

    /* This thread's team and its place within it: rows of the tile are dealt out by the caller, columns(v) begins
     * vector v of the thread's columns. */
    int team;
    int row;
    int across;

    __device__ Tile() {
        const int within = int(threadIdx.x) % kTeam;
        team = int(threadIdx.x) / kTeam;
        across = within % (kColumns / kAcross);
        row = within / (kColumns / kAcross);
    }
    __device__ __forceinline__ int column(int vector) const {
        return vector * (kColumns / kAcross * kWidth) + across * kWidth;
    }
};

template <class T>
using Sums = T[8][4];

template <class T>
__device__ __forceinline__ T rectified(T value) {
    return value < T(0) ? T(0) : value;  // a NaN stays
}

/* Rows to gather: [., channels] each. */
template <class T>
struct Left {
    const T* rows;
    int channels;
    int taps;
    bool vectors;
};

/* A matrix [depth, columns], of which columns from n0 on are meant. */
template <class T>
struct Right {
    const T* values;
    int depth;
    int columns;
    int n0;
    bool vectors;
};

/* What is done to a gathered element before it is multiplied: nothing. */
struct AsItIs {
    static constexpr bool kActive = false;
};

/* max(scale * x + shift, 0) by channel; x when scale is NULL. */
template <class T>
struct Activated {
    static constexpr bool kActive = true;
    const T* scale;
    const T* shift;
    __device__ __forceinline__ T operator()(T x, int c) const { return rectified(scale[c] * x + shift[c]); }
};

/* Calls visit(row, k) for the pieces of kStep elements of a left slab that this thread copies; k is always the same. */
template <class T, int kColumns, int kStep, class Visit>
__device__ __forceinline__ void own_pieces(const Visit& visit) {
    using S = Tile<T, kColumns>;
    constexpr int kLine = S::kDepth / kStep;
    static_assert(S::kThreads % kLine == 0, "one k a thread");
#pragma unroll(kStep == 1 ? 1 : 2)
    for (int row = int(threadIdx.x) / kLine; row < S::kRows; row += S::kThreads / kLine) {
        visit(row, int(threadIdx.x) % kLine * kStep);
    }
}

/* found[tap - tap0, row] names the gathered row. */
template <class T, int kColumns, int kStep>
__device__ __forceinline__ void start_left(eqc_shared_ptr<T> slab, const Left<T>& from, int k0,
                                           eqc_shared_ptr<int32_t> found, int tap0) {
    using S = Tile<T, kColumns>;
    const int k = k0 + int(threadIdx.x) % (S::kDepth / kStep) * kStep;
    const int tap = k / from.channels;
    const int c = k - tap * from.channels;
    own_pieces<T, kColumns, kStep>([&](int row, int at) {
        const int32_t source = tap < from.taps ? int32_t(found[(tap - tap0) * S::kRows + row]) : -1;
        copy_ahead<kStep, T>(slab + row * S::kPitch + at,
                             from.rows + (source < 0 ? 0 : int64_t(source) * from.channels + c), source >= 0);
    });
}

/* Changes what this thread has copied, once it has arrived. */
template <class T, int kColumns, int kStep, class Change>
__device__ __forceinline__ void change_left(eqc_shared_ptr<T> slab, const Left<T>& from, int k0, const Change& change) {
    using S = Tile<T, kColumns>;
    const int k = k0 + int(threadIdx.x) % (S::kDepth / kStep) * kStep;
    if (k >= from.taps * from.channels) {
        return;
    }
    const int c = k % from.channels;
    own_pieces<T, kColumns, kStep>([&](int row, int at) {
        const eqc_shared_ptr<T> piece = slab + row * S::kPitch + at;
        if constexpr (kStep == 1) {
            piece[0] = change(T(piece[0]), c);
        } else {
            T values[kStep];
            load16(piece, values);
#pragma unroll
            for (int i = 0; i < kStep; ++i) {
                values[i] = change(values[i], c + i);
            }
            store16(piece, values);
        }
    });
}

template <class T, int kColumns, int kStep>
__device__ __forceinline__ void start_right(eqc_shared_ptr<T> slab, const Right<T>& from, int k0) {
    using S = Tile<T, kColumns>;
    constexpr int kLine = kColumns / kStep;
#pragma unroll 1
    for (int piece = int(threadIdx.x); piece < S::kDepth * kLine; piece += S::kThreads) {
        const int k = k0 + piece / kLine;
        const int n = piece % kLine * kStep;
        const bool real = k < from.depth && from.n0 + n < from.columns;
        copy_ahead<kStep, T>(slab + piece * kStep,
                             from.values + (real ? int64_t(k) * from.columns + from.n0 + n : 0), real);
    }
}
template <class T, int kColumns>
__device__ __forceinline__ void start_right(eqc_shared_ptr<T> slab, const Right<T>& from, int k0) {
    if (from.vectors) {
        start_right<T, kColumns, Tile<T, kColumns>::kWidth>(slab, from, k0);
    } else {
        start_right<T, kColumns, 1>(slab, from, k0);
    }
}

template <class T>
__device__ __forceinline__ void clear(Sums<T>& sums) {
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            sums[r][n] = 0;
        }
    }
}

template <class T, int kColumns>
__device__ __forceinline__ void load_columns(const Tile<T, kColumns>& own, eqc_shared_ptr<T> line, T (&to)[4]) {
    constexpr int kWidth = Vector16<T>::width;
#pragma unroll
    for (int v = 0; v < 4 / kWidth; ++v) {
        T values[kWidth];
        load16(line + own.column(v), values);
#pragma unroll
        for (int n = 0; n < kWidth; ++n) {
            to[v * kWidth + n] = values[n];
        }
    }
}

/* sums[r] += rows row + 8 r of a left slab (of that pitch) x a right slab. */
template <class T, int kColumns>
__device__ __forceinline__ void multiply(Sums<T>& sums, const Tile<T, kColumns>& own, eqc_shared_ptr<T> left, int pitch,
                                         eqc_shared_ptr<T> right) {
    using S = Tile<T, kColumns>;
    constexpr int kWidth = S::kWidth;
    const eqc_shared_ptr<T> a = left + own.row * pitch + own.team * S::kShare;
    const eqc_shared_ptr<T> b = right + own.team * S::kShare * kColumns;
#pragma unroll 1
    for (int k = 0; k < S::kShare; k += kWidth) {
        T across[kWidth][4];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            load_columns<T, kColumns>(own, b + (k + i) * kColumns, across[i]);
        }
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            T down[kWidth];
            load16(a + 8 * r * pitch + k, down);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    sums[r][n] += down[i] * across[i][n];
                }
            }
        }
    }
}

/* The neighbours of a tile's rows at some taps, in shared memory. */
template <class T, int kColumns>
struct Window {
    using S = Tile<T, kColumns>;
    eqc_shared_ptr<int32_t> found;     // [kTaps, kRows]
    eqc_shared_ptr<unsigned> present;  // [kThreads / 32] which taps any row of a warp has
    int begin = 0;
    int end = 0;
    unsigned taps = 0;  // which of them any row has

    /* Moves it to the taps from `tap` on; by the whole block, with barriers before and behind. */
    template <class Rows>
    __device__ __forceinline__ void move(const Rows& rows, int tap, int all) {
        const int row = int(threadIdx.x) % S::kRows;
        const auto from = rows.seeker(row);
        begin = tap;
        end = all - tap < S::kTaps ? all : tap + S::kTaps;
        unsigned mine = 0;
        __syncthreads();
        for (int t = int(threadIdx.x) / S::kRows; t < end - begin; t += S::kThreads / S::kRows) {
            const int32_t row_there = rows.find(from, begin + t);
            found[t * S::kRows + row] = row_there;
            mine |= unsigned(row_there >= 0) << t;
        }
        mine = __reduce_or_sync(kAllLanes, mine);
        if (threadIdx.x % 32 == 0) {
            present[threadIdx.x / 32] = mine;
        }
        __syncthreads();
        taps = 0;
        for (int warp = 0; warp < S::kThreads / 32; ++warp) {
            taps |= present[warp];
        }
    }

    /* The first slab from k on that some row has a neighbour for, or that begins behind the last tap; the window then
     * covers its taps. All slabs when `every`. */
    template <class Rows>
    __device__ __forceinline__ int next(const Rows& rows, const Left<T>& left, int depth, int k, bool every) {
        for (; k < depth; k += S::kDepth) {
            const int last_k = k + S::kDepth <= depth ? k + S::kDepth - 1 : depth - 1;
            const int first = k / left.channels;
            const int last = last_k / left.channels;
            if (last >= end) {
                move(rows, first, left.taps);
            }
            const unsigned wanted = (2u << (last - begin)) - (1u << (first - begin));
            if (every || (taps & wanted) != 0) {
                break;
            }
        }
        return k;
    }
};

/* sums += gathered rows x right (taps * channels deep), the rows of the tile being row + 8 r; rows.seeker(row) and
 * rows.find(seeker, tap) name them. False when there was nothing to add. Barriers come before the first write to
 * shared memory and after the last read of it. */
template <class T, int kColumns, class Rows, class Change>
__device__ __forceinline__ bool accumulate(Sums<T>& sums, const Tile<T, kColumns>& own, const Rows& rows,
                                           const Left<T>& left, const Right<T>& right, Window<T, kColumns> window,
                                           const Change& change) {
    using S = Tile<T, kColumns>;
    const int depth = right.depth;
    const auto start = [&](int k, int which) {
        if (left.vectors) {
            start_left<T, kColumns, S::kWidth>(S::left(which), left, k, window.found, window.begin);
        } else {
            start_left<T, kColumns, 1>(S::left(which), left, k, window.found, window.begin);
        }
        start_right<T, kColumns>(S::right(which), right, k);
    };
    int k = window.next(rows, left, depth, 0, Change::kActive);
    const bool any = k < depth;
    if (any) {
        start(k, 0);
    }
    for (int which = 0; k < depth; which ^= 1) {
        const int following = window.next(rows, left, depth, k + S::kDepth, Change::kActive);
        copies_arrive();
        if constexpr (Change::kActive) {
            if (left.vectors) {
                change_left<T, kColumns, S::kWidth>(S::left(which), left, k, change);
            } else {
                change_left<T, kColumns, 1>(S::left(which), left, k, change);
            }
        }
        __syncthreads();
        if (following < depth) {
            start(following, which ^ 1);
        }
        multiply<T, kColumns>(sums, own, S::left(which), S::kPitch, S::right(which));
        k = following;
    }
    __syncthreads();
    return any;
}

/* The teams' sums, added in their order, as [64][kColumns] in Tile::sums(); row_of(r) is where sums[r] goes. Barriers
 * around, the first is the caller's. */
template <class T, int kColumns, class RowOf>
__device__ __forceinline__ void deposit(const Sums<T>& sums, const Tile<T, kColumns>& own, const RowOf& row_of) {
    using S = Tile<T, kColumns>;
    constexpr int kWidth = S::kWidth;
#pragma unroll 1
    for (int team = 0; team < S::kTeams; ++team) {
        if (own.team == team) {
#pragma unroll
            for (int r = 0; r < 8; ++r) {
#pragma unroll
                for (int v = 0; v < 4 / kWidth; ++v) {
                    const eqc_shared_ptr<T> at = S::sums() + row_of(r) * kColumns + own.column(v);
                    T values[kWidth] = {};
                    if (team > 0) {
                        load16(at, values);
                    }
#pragma unroll
                    for (int n = 0; n < kWidth; ++n) {
                        values[n] += sums[r][v * kWidth + n];
                    }
                    store16(at, values);
                }
            }
        }
        __syncthreads();
    }
}

/* Calls visit(row, column, sums[4]) for each four neighbours of the deposited tile (zeros when there is none), shared
 * out among the threads. */
template <class T, int kColumns, class Visit>
__device__ __forceinline__ void deposited(bool any, const Visit& visit) {
    using S = Tile<T, kColumns>;
#pragma unroll 1
    for (int at = 4 * int(threadIdx.x); at < S::kRows * kColumns; at += 4 * S::kThreads) {
        T values[4];
        load<T, 4>(S::sums() + at, true, any ? 4 : 0, values);
        visit(at / kColumns, at % kColumns, values);
    }
}

/* ---- The host's part -------------------------------------------------------------------------------------------- */

template <class T>
bool in_vectors(const void* pointer, int64_t extent) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && extent % Vector16<T>::width == 0;
}

/* Calls launch(std::integral_constant<int, kColumns>) with the width of tile that suits so many columns: least work,
 * where gathering the rows counts like 16 columns. */
template <class Launch>
void with_tile(int64_t columns, const Launch& launch) {
    constexpr int kWidths[] = {8, 16, 24, 32, 48, 64};
    int best = 64;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const int width : kWidths) {
        const int64_t work = ceil_div(columns, width) * (width + 16);
        if (work <= least) {
            best = width;
            least = work;
        }
    }
    switch (best) {
        case 8: return launch(std::integral_constant<int, 8>());
        case 16: return launch(std::integral_constant<int, 16>());
        case 24: return launch(std::integral_constant<int, 24>());
        case 32: return launch(std::integral_constant<int, 32>());
        case 48: return launch(std::integral_constant<int, 48>());
        default: return launch(std::integral_constant<int, 64>());
    }
}

}  // namespace eqc

#endif
