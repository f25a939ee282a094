/* Neighbours of sites: the outputs of a strided convolution, and for each output and tap the input there.
 *
 * Outputs are a set. Where the output's extents allow it, the set is a bitmap: its order is the order that is wanted,
 * and one launch makes the list. Over extents that are huge for so few sites it is a hash table, which a radix sort
 * puts in order. Rows by coordinate are found likewise, in a map of the whole extent or in a hash table. Which of the
 * two is decided by the sizes alone. Coordinates are unique, so that no result depends on the order of insertion.
 */
#include "compaction.cuh"
#include "launch.cuh"

namespace {

using eqc::ceil_div;
using eqc::Divider;
using eqc::kAllLanes;
using eqc::kTileThreads;
using eqc::RowStart;

using Key = unsigned long long;  // a coordinate as a number, the batch first and the last axis fastest

constexpr int kAxes = 4;
constexpr Key kNoKey = ~0ull;
constexpr int kPairs = 4;                                     // pairs of row and tap of a thread
constexpr int64_t kTile = int64_t(kTileThreads) * kPairs;
constexpr int64_t kSmall = int64_t(1) << 22;                  // words: 16 MiB, which stay in the level-2 cache
constexpr int64_t kMostKeys = int64_t(1) << 62;

/* One axis of the convolution. An axis that there is not has one position and one tap. */
struct Axis {
    int64_t extent = 1;
    int64_t out_extent = 1;
    int64_t kernel = 1;
    int64_t stride = 1;
    int64_t pad = 0;
    int64_t dilation = 1;
};

struct Convolution {
    Axis axis[kAxes];
    Divider kernel[kAxes];  // taps along each axis
    Divider stride[kAxes];
    Divider taps;
    int axes;
    int64_t batch;

    explicit Convolution(const eqc_neighbours& a)
        : axis{{a.extent_0, a.out_extent_0, a.kernel_0, a.stride_0, a.pad_0, a.dilation_0},
               {a.extent_1, a.out_extent_1, a.kernel_1, a.stride_1, a.pad_1, a.dilation_1},
               {a.extent_2, a.out_extent_2, a.kernel_2, a.stride_2, a.pad_2, a.dilation_2},
               {a.extent_3, a.out_extent_3, a.kernel_3, a.stride_3, a.pad_3, a.dilation_3}},
          kernel{Divider(a.kernel_0), Divider(a.axes > 1 ? a.kernel_1 : 1), Divider(a.axes > 2 ? a.kernel_2 : 1),
                 Divider(a.axes > 3 ? a.kernel_3 : 1)},
          stride{Divider(a.stride_0), Divider(a.stride_1), Divider(a.stride_2), Divider(a.stride_3)},
          taps(1),
          axes(int(a.axes)),
          batch(a.batch) {
        for (int d = axes; d < kAxes; ++d) {
            axis[d] = Axis();
        }
        taps = Divider(
            eqc::product({axis[0].kernel, axis[1].kernel, axis[2].kernel, axis[3].kernel}, eqc::kLargestSize));
    }

    int64_t cells() const {
        return eqc::product({batch, axis[0].extent, axis[1].extent, axis[2].extent, axis[3].extent}, kMostKeys);
    }
    int64_t out_cells() const {
        return eqc::product({batch, axis[0].out_extent, axis[1].out_extent, axis[2].out_extent, axis[3].out_extent},
                            kMostKeys);
    }

    /* Position of a tap along each axis. */
    __device__ __forceinline__ void offsets(unsigned tap, int (&offset)[kAxes]) const {
#pragma unroll
        for (int d = kAxes - 1; d >= 0; --d) {
            const unsigned rest = kernel[d].quotient(tap);
            offset[d] = int(tap - rest * kernel[d].divisor());
            tap = rest;
        }
    }

    /* The key of the place that is at position(d) on axis d, where that is within `extent`; else kNoKey. */
    template <class Position>
    __device__ __forceinline__ Key key_at(int64_t image, int64_t Axis::* extent, const Position& position) const {
        Key key = Key(image);
        bool there = image >= 0 && image < batch;
#pragma unroll
        for (int d = 0; d < kAxes; ++d) {
            if (d < axes) {
                const int64_t at = position(d);
                there = there && at >= 0 && at < axis[d].*extent;
                key = key * Key(axis[d].*extent) + Key(at);
            }
        }
        return there ? key : kNoKey;
    }

    /* The key of the output for which the input `coordinate` is at the tap; kNoKey: there is none. */
    __device__ __forceinline__ Key output_of(const int32_t* coordinate, const int (&offset)[kAxes]) const {
        return key_at(coordinate[0], &Axis::out_extent, [&](int d) -> int64_t {
            const int64_t from = coordinate[1 + d] + axis[d].pad - offset[d] * axis[d].dilation;
            const int64_t at = stride[d].quotient(unsigned(from));
            return from >= 0 && from <= INT32_MAX && at * axis[d].stride == from ? at : -1;
        });
    }

    /* The key of the input that the output `coordinate` has at the tap, likewise. */
    __device__ __forceinline__ Key input_of(const int32_t* coordinate, const int (&offset)[kAxes]) const {
        return key_at(coordinate[0], &Axis::extent, [&](int d) -> int64_t {
            return coordinate[1 + d] * axis[d].stride - axis[d].pad + offset[d] * axis[d].dilation;
        });
    }

    /* The key of an input itself. */
    __device__ __forceinline__ Key key_of(const int32_t* coordinate) const {
        return key_at(coordinate[0], &Axis::extent, [&](int d) -> int64_t { return coordinate[1 + d]; });
    }

    /* Writes an output's coordinate. */
    template <class Pointer>
    __device__ __forceinline__ void write_output(Pointer to, Key key) const {
#pragma unroll
        for (int d = kAxes - 1; d >= 0; --d) {
            if (d < axes) {
                const Key rest = key / Key(axis[d].out_extent);
                to[1 + d] = int32_t(key - rest * Key(axis[d].out_extent));
                key = rest;
            }
        }
        to[0] = int32_t(key);
    }
};

/* ---- Open addressing -------------------------------------------------------------------------------------------- */

/* The least power of two with at most half of it used. */
int64_t table_size(int64_t entries) {
    int64_t size = 64;
    while (size < 2 * entries) {
        size *= 2;
    }
    return size;
}

/* Mixes all bits into all bits (the finaliser of MurmurHash3). */
__device__ __forceinline__ Key mixed(Key key) {
    key = (key ^ (key >> 33)) * 0xff51afd7ed558ccdull;
    key = (key ^ (key >> 33)) * 0xc4ceb9fe1a85ec53ull;
    return key ^ (key >> 33);
}

struct Found {
    int64_t slot;  // -1: the table is full, or the key is not in it
    bool added;
};

/* The slot of a key, which is added when it is not there. The table's bytes were 0xff. */
template <class Table>
__device__ __forceinline__ Found insert(const Table& table, int64_t size, Key key) {
    int64_t slot = int64_t(mixed(key) & Key(size - 1));
    for (int64_t probe = 0; probe < size; ++probe) {
        const Key before = atomicCAS(table + slot, kNoKey, key);
        if (before == kNoKey || before == key) {
            return {slot, before == kNoKey};
        }
        slot = (slot + 1) & (size - 1);
    }
    return {-1, false};
}

/* ---- site_outputs ----------------------------------------------------------------------------------------------- */

struct Inputs {
    Convolution convolution;
    int64_t rows;
    const int32_t* coords;
    const int32_t* count;
};

/* Calls visit(key) for the output of every pair of an input row and a tap that has one. */
template <class Visit>
__device__ __forceinline__ void for_outputs(const Inputs& in, const Visit& visit) {
    const int64_t pairs = eqc::entries(in.count, in.rows) * in.convolution.taps.divisor();
    const int64_t first = int64_t(blockIdx.x) * kTile;
    const RowStart start(first, in.convolution.taps);
    for (int k = 0; k < kPairs; ++k) {
        const unsigned step = unsigned(k * kTileThreads + threadIdx.x);
        if (first + step >= pairs) {
            return;
        }
        const RowStart at = start.after(step, in.convolution.taps);
        int offset[kAxes];
        in.convolution.offsets(at.item, offset);
        const Key key = in.convolution.output_of(in.coords + at.row * (1 + in.convolution.axes), offset);
        if (key != kNoKey) {
            visit(key);
        }
    }
}

/* Clears the outputs' bits, which all were set. */
__global__ void __launch_bounds__(kTileThreads) mark_outputs(Inputs in, unsigned* bits, int64_t words) {
    const auto marked = eqc_view(bits, words);
    for_outputs(in, [&](Key key) { atomicAnd(marked + int64_t(key / 32), ~(1u << (key % 32))); });
}

/* Where the list goes; with more outputs than it has room for it is empty. */
struct Outputs {
    int64_t capacity;
    int32_t* coords;  // [capacity, 1 + axes]
    int32_t* count;
};

/* A word of the bitmap a thread. */
__global__ void __launch_bounds__(kTileThreads) list_outputs(Convolution convolution, const unsigned* bits,
                                                             int64_t words, Outputs out, eqc::TileSums sums) {
    const int64_t tile = eqc::take_tile(sums);
    const int64_t at = tile * kTileThreads + threadIdx.x;
    unsigned word = at < words ? ~unsigned(eqc_view(bits, words)[at]) : 0u;
    const eqc::Placed placed = eqc::place_in_order(sums, tile, unsigned(__popc(word)));
    const auto coords = eqc_view(out.coords, out.capacity * (1 + convolution.axes));
    for (int64_t to = placed.at; word != 0 && to < out.capacity; ++to) {
        const int bit = __ffs(int(word)) - 1;
        word &= word - 1;
        convolution.write_output(coords + to * (1 + convolution.axes), Key(at) * 32 + Key(bit));
    }
    if (tile == sums.tiles - 1 && threadIdx.x == 0) {
        *out.count = placed.until <= out.capacity ? int32_t(placed.until) : 0;
    }
}

/* The outputs as keys, each once, in any order. */
struct KeyList {
    Key* table;  // bytes 0xff at first
    int64_t size;
    Key* keys;  // [capacity]
    int64_t capacity;
    Key* found;  // how many less 1: bytes 0xff at first

    __device__ __forceinline__ int64_t count() const {
        const int64_t all = int64_t(*found + 1);
        return all <= capacity ? all : 0;
    }
};

__global__ void __launch_bounds__(kTileThreads) collect_outputs(Inputs in, KeyList list) {
    const auto table = eqc_view(list.table, list.size);
    const auto keys = eqc_view(list.keys, list.capacity);
    const auto found = eqc_view(list.found, 1);
    for_outputs(in, [&](Key key) {
        if (insert(table, list.size, key).added) {
            const int64_t to = int64_t(atomicAdd(found, 1ull) + 1);
            if (to < list.capacity) {
                keys[to] = key;
            }
        }
    });
}

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kTileThreads, "a thread a digit");
constexpr int kRounds = 4;
constexpr int64_t kSorted = int64_t(kTileThreads) * kRounds;  // keys of a block

struct SortPass {
    KeyList list;
    const Key* from;
    Key* to;
    unsigned* places;  // [kDigits, tiles] how many keys have a digit in a tile; then, where the first of them goes
    int64_t tiles;
    int shift;

    __device__ __forceinline__ int digit(Key key) const { return int(key >> shift) & (kDigits - 1); }
};

__global__ void __launch_bounds__(kTileThreads) count_digits(SortPass p) {
    EQC_SHARED_ARRAY(unsigned, counts, kDigits);
    const int64_t count = p.list.count();
    const auto from = eqc_view(p.from, p.list.capacity);
    const int64_t tile = blockIdx.x;
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t at = tile * kSorted + threadIdx.x; at < (tile + 1) * kSorted && at < count; at += kTileThreads) {
        atomicAdd(counts + p.digit(from[at]), 1u);
    }
    __syncthreads();
    eqc_view(p.places, kDigits * p.tiles)[int64_t(threadIdx.x) * p.tiles + tile] = counts[threadIdx.x];
}

/* Sums of all counts before each, in place. */
__global__ void __launch_bounds__(kTileThreads) place_digits(unsigned* places_pointer, int64_t entries,
                                                             eqc::TileSums sums) {
    const auto places = eqc_view(places_pointer, entries);
    const int64_t tile = eqc::take_tile(sums);
    const int64_t at = tile * kTileThreads + threadIdx.x;
    const eqc::Placed placed = eqc::place_in_order(sums, tile, at < entries ? unsigned(places[at]) : 0u);
    if (at < entries) {
        places[at] = placed.at;
    }
}

/* Moves the keys of a tile to their places; keys with the same digit keep their order. */
__global__ void __launch_bounds__(kTileThreads) move_keys(SortPass p) {
    EQC_SHARED_ARRAY(unsigned, of_warp, eqc::kTileWarps * kDigits);
    EQC_SHARED_ARRAY(unsigned, next, kDigits);
    const int lane = int(threadIdx.x) % 32;
    const int warp = int(threadIdx.x) / 32;
    const int64_t count = p.list.count();
    const auto from = eqc_view(p.from, p.list.capacity);
    const auto to = eqc_view(p.to, p.list.capacity);
    const int64_t tile = blockIdx.x;
    if (tile * kSorted >= count) {
        return;
    }
    next[threadIdx.x] = eqc_view(p.places, kDigits * p.tiles)[int64_t(threadIdx.x) * p.tiles + tile];
    for (int round = 0; round < kRounds; ++round) {
        for (int w = 0; w < eqc::kTileWarps; ++w) {
            of_warp[w * kDigits + threadIdx.x] = 0;
        }
        __syncthreads();
        const int64_t at = tile * kSorted + round * kTileThreads + threadIdx.x;
        const bool there = at < count;
        const Key key = there ? Key(from[at]) : 0;
        const int digit = p.digit(key);
        unsigned same = __ballot_sync(kAllLanes, there);
#pragma unroll
        for (int bit = 0; bit < kDigitBits; ++bit) {
            const bool set = (digit >> bit & 1) != 0;
            const unsigned with = __ballot_sync(kAllLanes, set);
            same &= set ? with : ~with;
        }
        const int before = __popc(same & ((1u << lane) - 1));
        if (there && before == 0) {
            of_warp[warp * kDigits + digit] = unsigned(__popc(same));
        }
        __syncthreads();
        unsigned place = next[threadIdx.x];
        for (int w = 0; w < eqc::kTileWarps; ++w) {
            const unsigned here = of_warp[w * kDigits + threadIdx.x];
            of_warp[w * kDigits + threadIdx.x] = place;
            place += here;
        }
        next[threadIdx.x] = place;
        __syncthreads();
        if (there) {
            to[int64_t(of_warp[warp * kDigits + digit]) + before] = key;
        }
        __syncthreads();
    }
}

__global__ void __launch_bounds__(kTileThreads) write_outputs(Convolution convolution, KeyList list, const Key* sorted,
                                                              Outputs out) {
    const int64_t count = list.count();
    const auto keys = eqc_view(sorted, list.capacity);
    const auto coords = eqc_view(out.coords, out.capacity * (1 + convolution.axes));
    const int64_t at = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
    if (at < count) {
        convolution.write_output(coords + at * (1 + convolution.axes), keys[at]);
    }
    if (at == 0) {
        *out.count = int32_t(count);
    }
}

/* ---- site_table ------------------------------------------------------------------------------------------------- */

/* Input rows by coordinate: an entry a cell, or a hash table. Bytes 0xff at first. */
struct Rows {
    int32_t* row = nullptr;
    Key* keys = nullptr;  // NULL: `row` has an entry for every cell
    int64_t size = 0;
};

__global__ void __launch_bounds__(kTileThreads) enter_rows(Inputs in, Rows rows) {
    const int64_t at = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
    if (at >= eqc::entries(in.count, in.rows)) {
        return;
    }
    const Key key = in.convolution.key_of(in.coords + at * (1 + in.convolution.axes));
    if (key == kNoKey) {
        return;
    }
    const auto keys = eqc_view(rows.keys, rows.keys == nullptr ? 0 : rows.size);
    const int64_t slot = rows.keys == nullptr ? int64_t(key) : insert(keys, rows.size, key).slot;
    if (slot >= 0) {
        eqc_view(rows.row, rows.size)[slot] = int32_t(at);
    }
}

__device__ __forceinline__ int32_t row_of(const Rows& rows, Key key) {
    const auto row = eqc_view(rows.row, rows.size);
    if (rows.keys == nullptr) {
        return row[int64_t(key)];
    }
    const auto keys = eqc_view(rows.keys, rows.size);
    int64_t slot = int64_t(mixed(key) & Key(rows.size - 1));
    for (;;) {
        const Key found = keys[slot];
        if (found == key) {
            return row[slot];
        }
        if (found == kNoKey) {
            return -1;
        }
        slot = (slot + 1) & (rows.size - 1);
    }
}

struct Table {
    int64_t rows;
    const int32_t* coords;
    const int32_t* count;
    int32_t* table;  // [rows, taps]
};

__global__ void __launch_bounds__(kTileThreads) fill_table(Convolution convolution, Rows rows, Table out) {
    const int64_t pairs = out.rows * convolution.taps.divisor();
    const int64_t count = eqc::entries(out.count, out.rows);
    const auto table = eqc_view(out.table, pairs);
    const int64_t first = int64_t(blockIdx.x) * kTile;
    const RowStart start(first, convolution.taps);
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
        const unsigned step = unsigned(k * kTileThreads + threadIdx.x);
        if (first + step >= pairs) {
            return;
        }
        const RowStart at = start.after(step, convolution.taps);
        int32_t found = -1;
        if (at.row < count) {
            int offset[kAxes];
            convolution.offsets(at.item, offset);
            const Key key = convolution.input_of(out.coords + at.row * (1 + convolution.axes), offset);
            found = key == kNoKey ? -1 : row_of(rows, key);
        }
        table[first + step] = found;
    }
}

/* ---- The calls -------------------------------------------------------------------------------------------------- */

int check(const eqc_neighbours& a) {
    if (a.axes < 1 || a.axes > kAxes || eqc::any_below(0, {a.batch, a.rows, a.out_rows})) {
        return EQC_BAD_ARGUMENT;
    }
    const Convolution c(a);
    for (const Axis& axis : c.axis) {
        if (eqc::any_below(0, {axis.extent, axis.out_extent}) ||
            eqc::any_below(1, {axis.kernel, axis.stride, axis.dilation})) {
            return EQC_BAD_ARGUMENT;
        }
        if (eqc::any_above(eqc::kLargestSize, {axis.extent, axis.out_extent, axis.kernel, axis.stride, axis.pad,
                                               axis.dilation}) ||
            axis.pad < -eqc::kLargestSize) {
            return EQC_UNSUPPORTED;
        }
    }
    if (eqc::any_above(INT32_MAX, {a.batch, a.rows, a.out_rows}) || c.cells() < 0 || c.out_cells() < 0 ||
        eqc::product({c.axis[0].kernel, c.axis[1].kernel, c.axis[2].kernel, c.axis[3].kernel}, eqc::kLargestSize) < 0 ||
        eqc::product({a.rows, int64_t(c.taps.divisor())}, eqc::kLargestGrid * kTileThreads) < 0 ||
        eqc::product({a.out_rows, int64_t(c.taps.divisor())}, eqc::kLargestGrid * kTileThreads) < 0) {
        return EQC_UNSUPPORTED;
    }
    return a.rows > 0 && a.coords == nullptr ? EQC_BAD_ARGUMENT : EQC_OK;
}

/* Whether memory for every cell is better than a hash table with so many entries. */
bool is_dense(int64_t words, int64_t entries) { return words <= kSmall || words <= 4 * entries; }

/* Outputs that there can be at most. */
int64_t most_outputs(const eqc_neighbours& a, const Convolution& c) {
    const int64_t pairs = a.rows * int64_t(c.taps.divisor());
    return pairs < a.out_rows ? pairs : a.out_rows;
}

/* What site_outputs keeps for a bitmap. All bytes 0xff at first. */
struct BitmapSpace {
    int64_t words;
    unsigned* bits;
    eqc::TileSums sums;

    BitmapSpace(int64_t cells, eqc::Space& space)
        : words(ceil_div(cells, 32)),
          bits(space.take<unsigned>(words)),
          sums(space, words == 0 ? 1 : ceil_div(words, kTileThreads)) {}
};

/* What it keeps for a hash table and sorting. */
struct SortSpace {
    static constexpr int kMostPasses = 64 / kDigitBits;
    KeyList list{};
    int passes = 0;
    int64_t tiles;
    eqc::TileSums sums[kMostPasses];
    size_t cleared;  // bytes at the beginning that are 0xff at first
    Key* other;
    unsigned* places;

    SortSpace(int64_t cells, int64_t capacity, eqc::Space& space) : tiles(ceil_div(capacity, kSorted)) {
        list.size = table_size(capacity);
        list.capacity = capacity;
        list.table = space.take<Key>(list.size);
        list.found = space.take<Key>(1);
        for (; passes < kMostPasses && ((cells - 1) >> (passes * kDigitBits)) > 0; ++passes) {
            sums[passes] = eqc::TileSums(space, tiles);
        }
        cleared = space.used();
        list.keys = space.take<Key>(capacity);
        other = space.take<Key>(capacity);
        places = space.take<unsigned>(tiles * kDigits);
    }
};

bool by_bitmap(const eqc_neighbours& a, const Convolution& c) {
    return is_dense(c.out_cells() / 32, most_outputs(a, c));
}

template <class T>
size_t site_outputs_workspace(const eqc_neighbours& a) {
    if (check(a) != EQC_OK) {
        return 0;
    }
    const Convolution c(a);
    eqc::Space space(nullptr);
    if (by_bitmap(a, c)) {
        BitmapSpace(c.out_cells(), space);
    } else {
        SortSpace(c.out_cells(), most_outputs(a, c), space);
    }
    return space.used();
}

void outputs_by_bitmap(int& status, const Inputs& in, dim3 grid, const Outputs& out, void* workspace,
                       cudaStream_t stream) {
    eqc::Space space(workspace);
    const BitmapSpace parts(in.convolution.out_cells(), space);
    eqc::fill_bytes(status, workspace, 0xff, space.used(), stream);
    if (in.rows > 0 && parts.words > 0) {
        EQC_LAUNCH_CHECKED(status, mark_outputs, grid, dim3(kTileThreads), 0, stream, in, parts.bits, parts.words);
    }
    EQC_LAUNCH_CHECKED(status, list_outputs, eqc::grid_for(parts.sums.tiles, 1), dim3(kTileThreads), 0, stream,
                       in.convolution, parts.bits, parts.words, out, parts.sums);
}

void outputs_by_sorting(int& status, const Inputs& in, int64_t capacity, dim3 grid, const Outputs& out,
                        void* workspace, cudaStream_t stream) {
    eqc::Space space(workspace);
    const SortSpace parts(in.convolution.out_cells(), capacity, space);
    eqc::fill_bytes(status, workspace, 0xff, parts.cleared, stream);
    if (in.rows > 0) {
        EQC_LAUNCH_CHECKED(status, collect_outputs, grid, dim3(kTileThreads), 0, stream, in, parts.list);
    }
    Key* from = parts.list.keys;
    Key* to = parts.other;
    for (int pass = 0; pass < parts.passes && capacity > 0; ++pass) {
        const SortPass sort{parts.list, from, to, parts.places, parts.tiles, pass * kDigitBits};
        const dim3 tiles = eqc::grid_for(parts.tiles, 1);
        EQC_LAUNCH_CHECKED(status, count_digits, tiles, dim3(kTileThreads), 0, stream, sort);
        EQC_LAUNCH_CHECKED(status, place_digits, tiles, dim3(kTileThreads), 0, stream, parts.places,
                           parts.tiles * kDigits, parts.sums[pass]);
        EQC_LAUNCH_CHECKED(status, move_keys, tiles, dim3(kTileThreads), 0, stream, sort);
        from = sort.to;
        to = const_cast<Key*>(sort.from);
    }
    EQC_LAUNCH_CHECKED(status, write_outputs, eqc::grid_for(capacity < 1 ? 1 : capacity, kTileThreads),
                       dim3(kTileThreads), 0, stream, in.convolution, parts.list, from, out);
}

template <class T>
int site_outputs(const eqc_neighbours& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK) {
        return status;
    }
    if (workspace == nullptr || a.made_count == nullptr || (a.out_rows > 0 && a.made_coords == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    const Inputs in{Convolution(a), a.rows, a.coords, a.count};
    const Outputs out{a.out_rows, a.made_coords, a.made_count};
    const dim3 grid = eqc::grid_for(a.rows * int64_t(in.convolution.taps.divisor()), kTile);
    if (by_bitmap(a, in.convolution)) {
        outputs_by_bitmap(status, in, grid, out, workspace, stream);
    } else {
        outputs_by_sorting(status, in, most_outputs(a, in.convolution), grid, out, workspace, stream);
    }
    return status;
}

/* The input rows of site_table, and the bytes at the beginning that are 0xff at first: all but a hash table's rows. */
struct RowSpace {
    Rows rows;
    size_t cleared;

    RowSpace(const eqc_neighbours& a, eqc::Space& space) {
        const int64_t cells = Convolution(a).cells();
        const bool dense = is_dense(cells, a.rows);
        rows.size = dense ? cells : table_size(a.rows);
        if (!dense) {
            rows.keys = space.take<Key>(rows.size);
        }
        cleared = space.used();
        rows.row = space.take<int32_t>(rows.size);
        cleared = dense ? space.used() : cleared;
    }
};

template <class T>
size_t site_table_workspace(const eqc_neighbours& a) {
    if (check(a) != EQC_OK) {
        return 0;
    }
    eqc::Space space(nullptr);
    RowSpace(a, space);
    return space.used();
}

template <class T>
int site_table(const eqc_neighbours& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK || a.out_rows == 0) {
        return status;
    }
    if (a.table == nullptr || a.out_coords == nullptr ||
        (workspace == nullptr && site_table_workspace<T>(a) > 0)) {
        return EQC_BAD_ARGUMENT;
    }
    eqc::Space space(workspace);
    const RowSpace parts(a, space);
    const Inputs in{Convolution(a), a.rows, a.coords, a.count};
    eqc::fill_bytes(status, workspace, 0xff, parts.cleared, stream);
    if (a.rows > 0) {
        EQC_LAUNCH_CHECKED(status, enter_rows, eqc::grid_for(a.rows, kTileThreads), dim3(kTileThreads), 0,
                           stream, in, parts.rows);
    }
    EQC_LAUNCH_CHECKED(status, fill_table,
                       eqc::grid_for(a.out_rows * int64_t(in.convolution.taps.divisor()), kTile),
                       dim3(kTileThreads), 0, stream, in.convolution, parts.rows,
                       (Table{a.out_rows, a.out_coords, a.out_count, a.table}));
    return status;
}

}  // namespace

EQC_DEFINE(site_outputs, eqc_neighbours, site_outputs)
EQC_DEFINE(site_table, eqc_neighbours, site_table)
