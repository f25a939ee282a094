/* The pre-activation bottleneck at a list of pixels, on CUDA, in two launches.
 *
 * Floor: 2 (C M touched + (9 M^2 + M C) sites) / peak operations, where touched pixels are the listed ones and their
 * neighbours, and sizeof(T) (C touched + 2 C sites) bytes / bandwidth, as x is read again for the sum. h2 at the
 * touched pixels, M wide, goes through global memory once (it stays in the second-level cache); h3 never does.
 *
 *   1. `inner`: a block looks at 128 consecutive pixels. Those that a listed pixel touches it finds by a search of a
 *      warp in the ascending list, a row of the image above, here and below; of them it makes tiles of 64 without gaps,
 *      and h2 = relu(scale2 (a w1) + shift2), where a = relu(scale1 x + shift1) is made when a slab of x has arrived.
 *      Blocks that nothing touches return, so no list of the touched pixels is ever made. One block more computes what
 *      is outside of the image, when that is not 0.
 *   2. `outer`: 64 listed pixels. The 3x3 convolution of h2 leaves relu(scale3 . + shift3) in shared memory, [64, M];
 *      that times w3, plus x, is y.
 */
#include "block_sparse.h"

#include "launch.cuh"
#include "neighbours.cuh"
#include "product.cuh"

namespace {

using eqc::ceil_div;
using eqc::kAllLanes;
using eqc::Left;
using eqc::Right;
using eqc::Sums;
using eqc::Tile;
using eqc::Window;

constexpr int kSegment = 128;  // pixels that a block of `inner` looks at

/* max(scale * sum + shift, 0) by column. */
template <class T>
struct Normalised {
    const T* scale;
    const T* shift;
    __device__ __forceinline__ T operator()(T sum, int n) const { return eqc::rectified(scale[n] * sum + shift[n]); }
};

struct Pixels {
    const int32_t* site;  // ascending
    const int32_t* count;
    int64_t sites;
    int height;
    int width;
    int64_t all;
};

/* The first entry from which on the positions are at least `least`; by a warp, the same in all its lanes. Each step
 * asks 32 entries at once. */
__device__ __forceinline__ int64_t lower_bound(const int32_t* ascending, int64_t count, int64_t least) {
    const int lane = int(threadIdx.x) % 32;
    int64_t begin = 0;  // what is before is below `least`
    int64_t end = count;  // what is from here on is not
    while (begin < end) {
        const int64_t step = (end - begin + 31) / 32;
        const int64_t probe = begin + (lane + 1) * step - 1;
        const bool below = probe < end && int64_t(ascending[probe]) < least;
        const int passed = __popc(__ballot_sync(kAllLanes, below));
        begin += passed * step;
        end = begin + step - 1 < end ? begin + step - 1 : end;
    }
    return begin;
}

/* Marks the pixels from `first` on that listed pixels of the row above (-1), here or below (1) touch; by a warp. */
__device__ __forceinline__ void mark_touched(const Pixels& p, int64_t count, int64_t first, int below,
                                             eqc_shared_ptr<int32_t> touched) {
    const int64_t shift = int64_t(below) * p.width;
    const int64_t least = first + shift - 1;
    const int64_t most = first + shift + kSegment;
    for (int64_t k = lower_bound(p.site, count, least) + threadIdx.x % 32; k < count; k += 32) {
        const int64_t position = p.site[k];
        if (position > most) {
            break;
        }
        const uint32_t line = uint32_t(position) / uint32_t(p.width);
        const int w = int(uint32_t(position) - line * uint32_t(p.width));
        const int h = int(line % uint32_t(p.height));
        if (h - below < 0 || h - below >= p.height) {
            continue;
        }
        for (int right = -1; right <= 1; ++right) {
            const int64_t at = position - shift + right - first;
            if (w + right >= 0 && w + right < p.width && at >= 0 && at < kSegment) {
                touched[at] = 1;
            }
        }
    }
}

/* list = the marked of kSegment pixels, in order; returns how many. By the whole block; a barrier comes last. */
__device__ __forceinline__ int compacted(eqc_shared_ptr<int32_t> touched, eqc_shared_ptr<int32_t> list) {
    static_assert(kSegment % 32 == 0, "whole warps");
    if (threadIdx.x < 32) {
        int before = 0;
        for (int k = int(threadIdx.x); k < kSegment; k += 32) {
            const unsigned marked = __ballot_sync(kAllLanes, touched[k] != 0);
            if ((marked >> threadIdx.x & 1u) != 0) {
                list[before + __popc(marked & ((1u << threadIdx.x) - 1u))] = k;
            }
            before += __popc(marked);
        }
        if (threadIdx.x == 0) {
            list[kSegment] = before;
        }
    }
    __syncthreads();
    return list[kSegment];
}

template <class T>
struct Inner {
    Pixels pixels;
    Left<T> left;    // x
    Right<T> right;  // w1
    eqc::Activated<T> first;
    Normalised<T> second;
    T* h2;  // [pixels + 1, M]
    bool vectors_out;
};

/* Rows of a tile by their pixel, one tap. */
struct ListedPixels {
    eqc_shared_ptr<int32_t> list;  // within the segment
    int64_t segment;
    int first;
    int end;
    __device__ __forceinline__ int64_t seeker(int row) const {
        return first + row < end ? segment + list[first + row] : -1;
    }
    __device__ __forceinline__ int32_t find(int64_t pixel, int) const { return int32_t(pixel); }
};

template <class T, int kColumns>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks) inner(Inner<T> p) {
    using S = Tile<T, kColumns>;
    EQC_SHARED_ARRAY(int32_t, found, S::kTaps * S::kRows);
    EQC_SHARED_ARRAY(unsigned, present, S::kThreads / 32);
    EQC_SHARED_ARRAY(int32_t, touched, kSegment);
    EQC_SHARED_ARRAY(int32_t, list, kSegment + 1);
    const int64_t segment = int64_t(blockIdx.x) * kSegment;
    const bool outside = segment >= p.pixels.all;  // the block for what is outside of the image
    int count = 1;
    if (!outside) {
        const int64_t sites = eqc::entries(p.pixels.count, p.pixels.sites);
        for (int k = int(threadIdx.x); k < kSegment; k += S::kThreads) {
            touched[k] = 0;
        }
        __syncthreads();
        if (threadIdx.x < 96) {
            mark_touched(p.pixels, sites, segment, int(threadIdx.x) / 32 - 1, touched);
        }
        __syncthreads();
        count = compacted(touched, list);
    }
    p.right.n0 = int(blockIdx.y) * kColumns;
    const auto h2 = eqc_view(p.h2, (p.pixels.all + 1) * p.right.columns);
    const S own;
    for (int first = 0; first < count; first += S::kRows) {
        const ListedPixels rows{list, segment, first, outside ? 0 : count};
        Sums<T> sums;
        eqc::clear<T>(sums);
        const Window<T, kColumns> window{found, present};
        if (p.first.scale != nullptr) {
            eqc::accumulate<T, kColumns>(sums, own, rows, p.left, p.right, window, p.first);
        } else {
            eqc::accumulate<T, kColumns>(sums, own, rows, p.left, p.right, window, eqc::AsItIs());
        }
        eqc::deposit<T, kColumns>(sums, own, [&](int r) { return own.row + 8 * r; });
        eqc::deposited<T, kColumns>(true, [&](int row, int column, T(&values)[4]) {
            const int n = p.right.n0 + column;
            if (first + row >= count || n >= p.right.columns) {
                return;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values[i] = n + i < p.right.columns ? p.second(values[i], n + i) : T(0);
            }
            const int64_t pixel = outside ? p.pixels.all : segment + list[first + row];
            eqc::store<T, 4>(h2 + (pixel * p.right.columns + n), p.vectors_out, p.right.columns - n, values);
        });
        __syncthreads();
    }
}

template <class T>
struct Outer {
    eqc::Neighbours neighbours;
    int32_t outside;  // row of h2 for what is outside of the image; -1: it is 0
    Left<T> left;     // h2
    Right<T> middle;  // w2
    Right<T> last;    // w3
    Normalised<T> third;
    const T* x;
    T* y;
    const int32_t* site;
    const int32_t* count;
    int64_t sites;
    int64_t pixels;
    int pitch;  // of h3
    bool vectors_x;
    bool vectors_y;
};

/* Neighbours of listed pixels in h2, with what stands for those outside. */
struct Surroundings {
    const eqc::Neighbours& neighbours;
    int64_t first;
    int count;
    int32_t outside;
    __device__ __forceinline__ eqc::Neighbours::Seeker seeker(int row) const {
        return neighbours.seeker(first + row, row < count);
    }
    __device__ __forceinline__ int32_t find(const eqc::Neighbours::Seeker& from, int tap) const {
        const int32_t found = neighbours.find(from, tap);
        return found < 0 && from.row >= 0 ? outside : found;
    }
};

/* sums += h3 x right; h3 is 0 from the depth of `right` up to a whole slab. Barriers as in eqc::accumulate. */
template <class T, int kColumns>
__device__ __forceinline__ void accumulate_tile(Sums<T>& sums, const Tile<T, kColumns>& own, eqc_shared_ptr<T> h3,
                                                int pitch, const Right<T>& right) {
    using S = Tile<T, kColumns>;
    eqc::start_right<T, kColumns>(S::right(0), right, 0);
    for (int k = 0, which = 0; k < right.depth; k += S::kDepth, which ^= 1) {
        eqc::copies_arrive();
        __syncthreads();
        if (k + S::kDepth < right.depth) {
            eqc::start_right<T, kColumns>(S::right(which ^ 1), right, k + S::kDepth);
        }
        eqc::multiply<T, kColumns>(sums, own, h3 + k, pitch, S::right(which));
    }
    __syncthreads();
}

template <class T, int kColumns>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks) outer(Outer<T> p) {
    using S = Tile<T, kColumns>;
    EQC_SHARED_ARRAY(int32_t, found, S::kTaps * S::kRows);
    EQC_SHARED_ARRAY(unsigned, present, S::kThreads / 32);
    const auto h3 = eqc_dynamic_shared<T>(S::kSharedBytes);
    const int64_t row0 = int64_t(blockIdx.x) * S::kRows;
    const int64_t end = eqc::entries(p.count, p.sites);
    if (row0 >= end) {
        return;
    }
    const int count = end - row0 < S::kRows ? int(end - row0) : S::kRows;
    const S own;
    const auto row_of = [&](int r) { return own.row + 8 * r; };
    const int width = p.pitch - S::kWidth;
    for (p.middle.n0 = 0; p.middle.n0 < p.middle.columns; p.middle.n0 += kColumns) {
        Sums<T> sums;
        eqc::clear<T>(sums);
        const Surroundings rows{p.neighbours, row0, count, p.outside};
        const Window<T, kColumns> window{found, present};
        const bool any = eqc::accumulate<T, kColumns>(sums, own, rows, p.left, p.middle, window, eqc::AsItIs());
        if (any) {
            eqc::deposit<T, kColumns>(sums, own, row_of);
        }
        eqc::deposited<T, kColumns>(any, [&](int row, int column, T(&values)[4]) {
            const int n = p.middle.n0 + column;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values[i] = n + i < p.middle.columns ? p.third(values[i], n + i) : T(0);
            }
            eqc::store<T, 4>(h3 + (row * p.pitch + n), true, width - n, values);
        });
        __syncthreads();
    }
    const int rest = width - p.middle.n0;  // columns that no product has written
    for (int k = int(threadIdx.x); k < S::kRows * rest; k += S::kThreads) {
        h3[k / rest * p.pitch + p.middle.n0 + k % rest] = T(0);
    }
    const auto y = eqc_view(p.y, p.pixels * p.last.columns);
    for (p.last.n0 = 0; p.last.n0 < p.last.columns; p.last.n0 += kColumns) {
        Sums<T> sums;
        eqc::clear<T>(sums);
        accumulate_tile<T, kColumns>(sums, own, h3, p.pitch, p.last);
        eqc::deposit<T, kColumns>(sums, own, row_of);
        eqc::deposited<T, kColumns>(true, [&](int row, int column, T(&values)[4]) {
            const int n = p.last.n0 + column;
            if (row >= count || n >= p.last.columns) {
                return;
            }
            const int64_t at = int64_t(p.site[row0 + row]) * p.last.columns + n;
            T before[4];
            eqc::load<T, 4>(p.x + at, p.vectors_x, p.last.columns - n, before);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values[i] += before[i];
            }
            eqc::store<T, 4>(y + at, p.vectors_y, p.last.columns - n, values);
        });
        __syncthreads();
    }
}

/* ---- The call --------------------------------------------------------------------------------------------------- */

using Arguments = eqc_residual;

constexpr int64_t kMostBottleneck = 1 << 14;  // far beyond what shared memory has room for

template <class T>
const T* typed(const void* pointer) {
    return static_cast<const T*>(pointer);
}

int check(const Arguments& a) {
    if (eqc::any_below(0, {a.images, a.height, a.width, a.sites}) || eqc::any_below(1, {a.channels, a.bottleneck})) {
        return EQC_BAD_ARGUMENT;
    }
    const int64_t pixels = eqc::product({a.images, a.height, a.width}, INT32_MAX - kSegment);
    if (pixels < 0 || a.height > eqc::kLargestSize || a.width > eqc::kLargestSize ||
        a.channels > eqc::kLargestSize || a.bottleneck > kMostBottleneck) {
        return EQC_UNSUPPORTED;
    }
    return a.sites > pixels ? EQC_BAD_ARGUMENT : EQC_OK;
}

template <class T>
size_t residual_workspace(const Arguments& a) {
    if (check(a) != EQC_OK || a.sites == 0) {
        return 0;
    }
    return size_t(a.images * a.height * a.width + 1) * size_t(a.bottleneck) * sizeof(T);
}

/* Of h3 in shared memory: M up to a whole slab, and a step of bank. */
template <class T>
int pitch_of(int64_t bottleneck) {
    using S = Tile<T, 64>;  // the same in every tile
    return int(ceil_div(bottleneck, S::kDepth)) * S::kDepth + S::kWidth;
}

template <class T, int kColumns>
size_t outer_bytes(int64_t bottleneck) {
    using S = Tile<T, kColumns>;
    return S::kSharedBytes + sizeof(T) * S::kRows * size_t(pitch_of<T>(bottleneck));
}

/* EQC_OK, or EQC_UNSUPPORTED where h3 is too wide for this device's shared memory. */
template <class T>
int check_shared(int64_t bottleneck) {
    size_t bytes = sizeof(int32_t) * 64 * 32 + 128;  // what the kernel declares itself
    eqc::with_tile(bottleneck, [&](auto columns) { bytes += outer_bytes<T, columns()>(bottleneck); });
    int device = 0;
    int most = 0;
    int status = eqc::status_of(cudaGetDevice(&device));
    if (status == EQC_OK) {
        status = eqc::status_of(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    }
    return status == EQC_OK && bytes > size_t(most) ? EQC_UNSUPPORTED : status;
}

bool lacks_pointers(const Arguments& a) {
    return a.site == nullptr || a.x == nullptr || (a.scale1 != nullptr && a.shift1 == nullptr) || a.w1 == nullptr ||
           a.scale2 == nullptr || a.shift2 == nullptr || a.w2 == nullptr || a.scale3 == nullptr ||
           a.shift3 == nullptr || a.w3 == nullptr || a.y == nullptr || a.y == a.x;
}

template <class T>
void launch_inner(int& status, const Arguments& a, T* h2, cudaStream_t stream) {
    const int channels = int(a.channels);
    const int bottleneck = int(a.bottleneck);
    const int64_t pixels = a.images * a.height * a.width;
    const Inner<T> p{{a.site, a.count, a.sites, int(a.height), int(a.width), pixels},
                     {typed<T>(a.x), channels, 1, eqc::in_vectors<T>(a.x, channels)},
                     {typed<T>(a.w1), channels, bottleneck, 0, eqc::in_vectors<T>(a.w1, bottleneck)},
                     {typed<T>(a.scale1), typed<T>(a.shift1)},
                     {typed<T>(a.scale2), typed<T>(a.shift2)},
                     h2,
                     eqc::in_vectors<T>(h2, bottleneck)};
    const bool outside = (a.flags & EQC_BS_ORIGINAL) != 0;
    eqc::with_tile(bottleneck, [&](auto columns) {
        using S = Tile<T, columns()>;
        const dim3 grid(unsigned(ceil_div(pixels, kSegment) + (outside ? 1 : 0)),
                        unsigned(ceil_div(bottleneck, columns())));
        EQC_LAUNCH_CHECKED(status, (inner<T, columns()>), grid, dim3(S::kThreads), S::kSharedBytes, stream, p);
    });
}

template <class T>
void launch_outer(int& status, const Arguments& a, const T* h2, cudaStream_t stream) {
    const int channels = int(a.channels);
    const int bottleneck = int(a.bottleneck);
    Outer<T> p{};
    p.pixels = a.images * a.height * a.width;
    p.neighbours.rows = a.sites;
    p.neighbours.taps = 9;
    p.neighbours.site = a.site;
    p.neighbours.down = {int(a.height), int(a.height), 1, 1, 1};
    p.neighbours.across = {int(a.width), int(a.width), 1, 1, 1};
    p.neighbours.kernel_width = 3;
    p.outside = (a.flags & EQC_BS_ORIGINAL) != 0 ? int32_t(p.pixels) : -1;
    p.left = {h2, bottleneck, 9, eqc::in_vectors<T>(h2, bottleneck)};
    p.middle = {typed<T>(a.w2), 9 * bottleneck, bottleneck, 0, eqc::in_vectors<T>(a.w2, bottleneck)};
    p.last = {typed<T>(a.w3), bottleneck, channels, 0, eqc::in_vectors<T>(a.w3, channels)};
    p.third = {typed<T>(a.scale3), typed<T>(a.shift3)};
    p.x = typed<T>(a.x);
    p.y = static_cast<T*>(a.y);
    p.site = a.site;
    p.count = a.count;
    p.sites = a.sites;
    p.pitch = pitch_of<T>(bottleneck);
    p.vectors_x = eqc::in_vectors<T>(a.x, channels);
    p.vectors_y = eqc::in_vectors<T>(a.y, channels);
    eqc::with_tile(bottleneck, [&](auto columns) {
        using S = Tile<T, columns()>;
        EQC_LAUNCH_CHECKED(status, (outer<T, columns()>), dim3(unsigned(ceil_div(a.sites, S::kRows))),
                           dim3(S::kThreads), (outer_bytes<T, columns()>(bottleneck)), stream, p);
    });
}

template <class T>
int residual(const Arguments& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK || a.sites == 0) {
        return status;
    }
    if (lacks_pointers(a) || workspace == nullptr) {
        return EQC_BAD_ARGUMENT;
    }
    status = check_shared<T>(a.bottleneck);
    T* const h2 = static_cast<T*>(workspace);
    launch_inner<T>(status, a, h2, stream);
    launch_outer<T>(status, a, h2, stream);
    return status;
}

}  // namespace

EQC_DEFINE(residual_forward, eqc_residual, residual)
