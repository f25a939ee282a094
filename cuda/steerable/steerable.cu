/* Expansion of the weights of a layer of steerable fields into its filter, and the transpose.
 *
 * The floor is one write of the filter (transposed: one read) beside the few weights; by harmonics, on top of it, two
 * small products for each pair of fields that never leave the multiprocessor. Either is one launch for all pairs of all
 * types: a block has an out field and a tile of in fields, and its warps take units of work of any of their types, as
 * the table says. The host knows only the sizes of the layer, so shared memory is dealt out by those.
 */
#include <algorithm>

#include "../common/launch.cuh"
#include "direct.cuh"
#include "harmonic.cuh"

namespace {

using eqc::steerable::Chunks;
using eqc::steerable::kThreads;
using eqc::steerable::kWarps;
using eqc::steerable::Layer;

constexpr int64_t kBusyBlocks = 528;             // that fill the device: four on each of 132 multiprocessors
constexpr int64_t kTileNumbers = 256;            // entries (out channel, in channel) of a block's pairs, about
constexpr int64_t kStagedBytes = 24 * 1024;      // of harmonics, at most
constexpr int64_t kCoefficientBytes = 4 * 1024;  // of a warp's coefficients, at most
constexpr int64_t kFunctionBytes = 8 * 1024;     // of a warp's function, about, at most

bool direct(const eqc_expansion& a) { return (a.flags & EQC_ST_DIRECT) != 0; }

/* Blocks of a grid: x has a block for each out field and tile, y blocks share the work of each. */
struct Grid {
    int64_t tile;
    int64_t tiles;
    int64_t sharing = 1;

    explicit Grid(const eqc_expansion& a) {
        const int64_t entries = std::max<int64_t>(a.out_channels * a.in_channels / (a.out_fields * a.in_fields), 1);
        tile = std::min<int64_t>(std::max<int64_t>(kTileNumbers / entries, 1), eqc::steerable::kLargestTile);
        while (tile > 1 && blocks(a) < kBusyBlocks) {
            tile /= 2;
        }
        tiles = eqc::ceil_div(a.in_fields, tile);
    }
    int64_t blocks(const eqc_expansion& a) const { return a.out_fields * eqc::ceil_div(a.in_fields, tile); }
    /* Has more blocks share the `units` of work of each. */
    void share(const eqc_expansion& a, int64_t units) {
        const int64_t most = std::max<int64_t>(units / kWarps, 1);
        sharing = std::min(std::min(eqc::ceil_div(kBusyBlocks, blocks(a)), most), int64_t(65535));
    }
    dim3 dimensions(const eqc_expansion& a) const { return dim3(unsigned(blocks(a)), unsigned(sharing)); }
};

/* Entries of the pairs of a tile, as many as they are on average. */
int64_t entries(const eqc_expansion& a, const Grid& grid) {
    return eqc::ceil_div(a.out_channels * a.in_channels * grid.tile, a.out_fields * a.in_fields);
}

template <class T>
Layer<T> layer(const eqc_expansion& a, const Grid& grid) {
    return {a.pairs,
            a.out_starts,
            a.in_starts,
            a.table,
            a.permutation,
            static_cast<const T*>(a.values),
            static_cast<const T*>(a.harmonic),
            static_cast<T*>(a.weights),
            static_cast<T*>(a.filter),
            int(a.in_fields),
            int(a.in_channels),
            int(a.pixels),
            int(a.harmonics),
            int(a.permutations),
            int(grid.tile),
            int(grid.tiles),
            a.weights_size,
            a.out_channels * a.in_channels * a.pixels,
            a.table_size,
            a.values_size};
}

/* A pitch of at least `count` numbers that spreads rows of 16-byte pieces over the banks. */
int64_t odd_pitch(int64_t count) { return 4 * (eqc::ceil_div(count, 4) | 1); }

template <class T, int kColumns>
Chunks chunks(const eqc_expansion& a, int numbers, int images) {
    Chunks c{};
    const int64_t size = sizeof(T);
    c.harmonics = int(std::max<int64_t>(std::min(a.harmonics, kCoefficientBytes / (size * kColumns)), 1));
    c.pixels = int(std::min(eqc::ceil_div(a.pixels, 4) * 4, kFunctionBytes / (size * kColumns)));
    c.pitch = int(odd_pitch(c.pixels));
    const int64_t staged = odd_pitch(a.pixels);
    c.staged = a.harmonics > 0 && staged <= kStagedBytes / (size * a.harmonics) ? int(staged) : 0;
    c.warps_begin = int(c.staged * a.harmonics * size);
    c.warp_bytes = int(eqc::steerable::Scratch<T, kColumns>::bytes(c, numbers, images));
    return c;
}

int shared_bytes(const Chunks& c) { return c.warps_begin + kWarps * c.warp_bytes; }

int check(const eqc_expansion& a) {
    if (eqc::any_below(0, {a.out_fields, a.in_fields, a.out_channels, a.in_channels, a.pixels, a.harmonics, a.types,
                           a.permutations, a.weights_size, a.table_size, a.values_size})) {
        return EQC_BAD_ARGUMENT;
    }
    if (eqc::product({a.out_fields, a.in_fields}, INT32_MAX) < 0 ||
        eqc::product({a.out_channels, a.in_channels, a.pixels}, INT32_MAX) < 0 ||
        eqc::product({a.harmonics, a.pixels + 7}, INT32_MAX) < 0 ||
        eqc::product({a.permutations, std::max<int64_t>(a.pixels, eqc::steerable::kImagePermutation)}, INT32_MAX) < 0 ||
        eqc::any_above(INT32_MAX, {a.weights_size, a.table_size, a.values_size})) {
        return EQC_UNSUPPORTED;
    }
    const bool pairs = a.out_fields > 0 && a.in_fields > 0;
    const bool filter = a.out_channels > 0 && a.in_channels > 0 && a.pixels > 0;
    const bool harmonics = !direct(a) && filter;
    if ((pairs && (a.pairs == nullptr || a.out_starts == nullptr || a.in_starts == nullptr)) ||
        (filter && (!pairs || a.filter == nullptr)) || (a.types > 0 && a.table == nullptr) ||
        (a.weights_size > 0 && a.weights == nullptr) || (a.values_size > 0 && a.values == nullptr) ||
        (harmonics && (a.permutations < 1 || a.permutation == nullptr)) ||
        (harmonics && a.harmonics > 0 && a.harmonic == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    return EQC_OK;
}

template <class T, int kColumns>
void expand_by_harmonics(int& status, const eqc_expansion& a, cudaStream_t stream) {
    using namespace eqc::steerable;
    Grid grid(a);
    grid.share(a, entries(a, grid) / kColumns);
    const Chunks c = chunks<T, kColumns>(a, kGathered, kImages);
    if (c.staged > 0) {
        EQC_LAUNCH_CHECKED(status, (expand_harmonics<T, kColumns, true>), grid.dimensions(a), dim3(kThreads),
                           shared_bytes(c), stream, layer<T>(a, grid), c);
    } else {
        EQC_LAUNCH_CHECKED(status, (expand_harmonics<T, kColumns, false>), grid.dimensions(a), dim3(kThreads),
                           shared_bytes(c), stream, layer<T>(a, grid), c);
    }
}

template <class T, int kColumns>
void gather_by_harmonics(int& status, const eqc_expansion& a, cudaStream_t stream) {
    using namespace eqc::steerable;
    const Grid grid(a);
    const Chunks c = chunks<T, kColumns>(a, kAccumulated, kColumns);
    if (c.staged > 0) {
        EQC_LAUNCH_CHECKED(status, (gather_harmonics<T, kColumns, true>), grid.dimensions(a), dim3(kThreads),
                           shared_bytes(c), stream, layer<T>(a, grid), c);
    } else {
        EQC_LAUNCH_CHECKED(status, (gather_harmonics<T, kColumns, false>), grid.dimensions(a), dim3(kThreads),
                           shared_bytes(c), stream, layer<T>(a, grid), c);
    }
}

/* With few pixels a warp needs more columns to be busy. */
constexpr int64_t kFewPixels = 16;

template <class T>
size_t expand_forward_workspace(const eqc_expansion&) {
    return 0;
}
template <class T>
int expand_forward(const eqc_expansion& a, void*, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK || a.out_channels * a.in_channels * a.pixels == 0) {
        return status;
    }
    if (direct(a)) {
        using namespace eqc::steerable;
        Grid grid(a);
        grid.share(a, entries(a, grid) * a.pixels / (32 * kExpanded));
        EQC_LAUNCH_CHECKED(status, expand_basis<T>, grid.dimensions(a), dim3(kThreads),
                           sizeof(T) * kWarps * kElements * kWeightPitch, stream, layer<T>(a, grid));
    } else if (a.pixels <= kFewPixels) {
        expand_by_harmonics<T, 32>(status, a, stream);
    } else {
        expand_by_harmonics<T, 16>(status, a, stream);
    }
    return status;
}

template <class T>
size_t expand_backward_workspace(const eqc_expansion&) {
    return 0;
}
template <class T>
int expand_backward(const eqc_expansion& a, void*, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK || a.weights_size == 0) {
        return status;
    }
    if (a.out_channels * a.in_channels * a.pixels == 0) {
        eqc::fill_bytes(status, a.weights, 0, sizeof(T) * size_t(a.weights_size), stream);
        return status;
    }
    if (direct(a)) {
        using namespace eqc::steerable;
        Grid grid(a);
        grid.share(a, a.weights_size / (32 * a.out_fields * a.in_fields));
        EQC_LAUNCH_CHECKED(status, gather_basis<T>, grid.dimensions(a), dim3(kThreads), 0, stream, layer<T>(a, grid));
    } else if (a.pixels <= kFewPixels) {
        gather_by_harmonics<T, 32>(status, a, stream);
    } else {
        gather_by_harmonics<T, 16>(status, a, stream);
    }
    return status;
}

}  // namespace

EQC_DEFINE(expand_forward, eqc_expansion, expand_forward)
EQC_DEFINE(expand_backward, eqc_expansion, expand_backward)
