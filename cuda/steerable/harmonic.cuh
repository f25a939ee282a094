/* The expansion by harmonics and its transpose, in units of work of a warp.
 *
 * The rows of the pairs of one type, one pair after the other, are columns; a unit has up to kColumns of them, of one
 * large pair or of many small ones, so lanes are busy whatever the sizes. What a unit makes, the coefficients
 * [harmonics, columns] and the function [columns, pixels], stays in the warp's part of shared memory. Where one of the
 * two is too large for that it is made in chunks, of numbers that depend on the layer, not on its types.
 */
#ifndef EQC_STEERABLE_HARMONIC_CUH
#define EQC_STEERABLE_HARMONIC_CUH

#include "layer.cuh"

namespace eqc::steerable {

/* An image that is to be written or read. */
struct alignas(8) Image {
    int32_t to;     // first pixel in the filter, -1: none
    uint32_t what;  // permutation, column, and in the last bit whether it is negative
};
constexpr unsigned kImageColumn = 2;        // times the column, which is below 32
constexpr unsigned kImagePermutation = 64;  // times the permutation

template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 8 : 5;  // at least, on a multiprocessor

constexpr int kGathered = 256;     // weights of slots that a warp holds
constexpr int kImages = 64;        // images that a warp holds
constexpr int kAccumulated = 512;  // gradients of weights that a warp holds

/* Sizes of chunks, and where they are in shared memory: the harmonics (if `staged`), then a part for each warp. */
struct Chunks {
    int harmonics;
    int pixels;  // a multiple of 4
    int pitch;   // of a column's pixels
    int staged;  // from harmonic to harmonic; 0: they stay in global memory
    int warps_begin;
    int warp_bytes;
};

template <class T, int kColumns>
struct Scratch {
    eqc_shared_ptr<T> coefficients;  // [harmonics, kColumns]
    eqc_shared_ptr<T> function;      // [kColumns, pitch]
    eqc_shared_ptr<T> numbers;       // forward: gathered weights; backward: gradients of weights
    eqc_shared_ptr<Image> images;
    eqc_shared_ptr<int32_t> harmonic;  // first number of each harmonic of the chunk

    static size_t bytes(const Chunks& c, int numbers, int images) {
        return sizeof(T) * size_t(c.harmonics * kColumns + kColumns * c.pitch + numbers) + sizeof(Image) * images +
               16 * (size_t(c.harmonics + 3) / 4);
    }
    __device__ __forceinline__ Scratch(const Chunks& c, int warp, int number_count, int image_count) {
        size_t at = size_t(c.warps_begin) + size_t(warp) * c.warp_bytes;
        coefficients = eqc_dynamic_shared<T>(at);
        at += sizeof(T) * c.harmonics * kColumns;
        function = eqc_dynamic_shared<T>(at);
        at += sizeof(T) * kColumns * c.pitch;
        numbers = eqc_dynamic_shared<T>(at);
        at += sizeof(T) * number_count;
        images = eqc_dynamic_shared<Image>(at);
        harmonic = eqc_dynamic_shared<int32_t>(at + sizeof(Image) * image_count);
    }
};

/* Puts the harmonics into shared memory, 0 behind their pixels; by the block. */
template <class T>
__device__ __forceinline__ void stage_harmonics(const Layer<T>& p, const Chunks& c) {
    const auto staged = eqc_dynamic_shared<T>(0);
    for (int h = int(threadIdx.x) / 32; h < p.harmonics && c.staged > 0; h += kWarps) {
        for (int pixel = int(threadIdx.x) % 32; pixel < c.staged; pixel += 32) {
            staged[h * c.staged + pixel] = pixel < p.pixels ? p.harmonic[int64_t(h) * p.pixels + pixel] : T(0);
        }
    }
}

/* Four pixels of the harmonic whose first number this is. */
template <bool kStaged, class T>
__device__ __forceinline__ void load_harmonic(const Layer<T>& p, int first, int pixel, T (&to)[4]) {
    if constexpr (kStaged) {
        load<T, 4>(eqc_dynamic_shared<T>(0) + first + pixel, true, 4, to);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            to[i] = pixel + i < p.pixels ? p.harmonic[int64_t(first) + pixel + i] : T(0);
        }
    }
}

/* Harmonics k0 to k0 + held of a type. */
struct Band {
    int k0;
    int held;
};

template <class T, int kColumns>
__device__ __forceinline__ void find_harmonics(const Layer<T>& p, const Chunks& c, const Type& type, const Band& band,
                                               const Scratch<T, kColumns>& own) {
    const auto table = p.table_view();
    for (int k = int(threadIdx.x) % 32; k < band.held; k += 32) {
        own.harmonic[k] = int(table[type.used + 3 * (band.k0 + k)]) * (c.staged > 0 ? c.staged : p.pixels);
    }
}

/* Columns first to first + count of the pairs of a type from field `at` of the tile on. */
struct Unit {
    int at;
    int first;
    int count;
};

/* C[k, column] of a band: 0 for columns that are not there. A lane has the same column throughout, and weights come in
 * the order of the slots. */
template <class T, int kColumns>
__device__ __forceinline__ void expand_coefficients(const Layer<T>& p, const Tile& tile, const Type& type,
                                                    const Unit& unit, const Band& band,
                                                    const Scratch<T, kColumns>& own) {
    const auto table = p.table_view();
    const auto weights = p.weights_read();
    const int lane = int(threadIdx.x) % 32;
    const int column = lane % kColumns;
    const int first_field = unit.first / type.rows;
    const int fields = (unit.first + unit.count - 1) / type.rows - first_field + 1;
    const int field = (unit.first + column) / type.rows;
    const auto values = p.values_view() + type.values + (unit.first + column - field * type.rows);
    const auto used = table + type.used + 3 * band.k0;
    const int begin = band.held == 0 ? 0 : int(used[2]);
    const int end = band.held == 0 ? 0 : int(used[3 * band.held - 1]) + int(used[3 * band.held - 2]);
    const int most = kGathered / fields;
    int slot0 = begin;
    do {
        const int slots = min(most, end - slot0);
        for (int item = lane; item < fields * slots; item += 32) {
            const int which = item / slots;
            const int slot = item - which * slots;
            own.numbers[which * most + slot] =
                weights[int(tile.weight[unit.at + first_field + which]) + int(table[type.element + slot0 + slot])];
        }
        __syncwarp();
        for (int k = lane / kColumns; k < band.held; k += 32 / kColumns) {
            const int from = max(int(used[3 * k + 2]), slot0);
            const int to = min(int(used[3 * k + 2]) + int(used[3 * k + 1]), slot0 + slots);
            T sum = slot0 == begin ? T(0) : T(own.coefficients[k * kColumns + column]);
            if (column < unit.count) {
                const auto gathered = own.numbers + ((field - first_field) * most - slot0);
#pragma unroll 4
                for (int slot = from; slot < to; ++slot) {
                    sum += T(gathered[slot]) * T(values[int64_t(slot) * type.rows]);
                }
            }
            own.coefficients[k * kColumns + column] = sum;
        }
        __syncwarp();
        slot0 += slots;
    } while (slot0 < end);
}

/* F[column, pixel] (+)= sum over the band of C[k, column] · harmonic[k, pixel], pixels from q0 on: 4 x 4 a lane. */
template <bool kStaged, class T, int kColumns>
__device__ __forceinline__ void expand_function(const Layer<T>& p, const Chunks& c, int q0, const Band& band,
                                                const Scratch<T, kColumns>& own) {
    constexpr int kDown = kColumns / 4;
    const int quads = (min(c.pixels, p.pixels - q0) + 3) / 4;
    for (int item = int(threadIdx.x) % 32; item < kDown * quads; item += 32) {
        const int column = item % kDown * 4;
        const int pixel = item / kDown * 4;
        T sum[4][4] = {};
        for (int k = 0; k < band.held; ++k) {
            T left[4], right[4];
            load<T, 4>(own.coefficients + (k * kColumns + column), true, 4, left);
            load_harmonic<kStaged>(p, int(own.harmonic[k]), q0 + pixel, right);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sum[i][j] += left[i] * right[j];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const auto to = own.function + ((column + i) * c.pitch + pixel);
            if (band.k0 > 0) {
                T before[4];
                load<T, 4>(to, true, 4, before);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sum[i][j] += before[j];
                }
            }
            store<T, 4>(to, true, 4, sum[i]);
        }
    }
}

/* The images of a row, as they are in the table. */
struct Images {
    int first;
    int count;

    __device__ __forceinline__ Images() : first(0), count(0) {}
    __device__ __forceinline__ Images(View<const int32_t> table, const Type& type, int row)
        : first(table[type.first_image + row]), count(int(table[type.first_image + row + 1]) - first) {}
};

template <class T>
__device__ __forceinline__ Image find_image(const Layer<T>& p, const Tile& tile, const Type& type, int field, int image,
                                            int column) {
    const auto from = p.table_view() + type.images + 4 * int64_t(image);
    const int row = tile.out_channel + int(from[0]);
    const int across = int(tile.channel[field]) + int(from[1]);
    const unsigned negative = int(from[2]) < 0 ? 1 : 0;
    return {(row * p.in_channels + across) * p.pixels,
            unsigned(int(from[3])) * kImagePermutation + unsigned(column) * kImageColumn + negative};
}

/* Calls visit(image, pixel of the filter, pixel of the function) for the pixels of `count` images of the warp that are
 * in the chunk from q0 on; consecutive lanes have consecutive pixels, on through the images. */
template <class T, class Visit>
__device__ __forceinline__ void visit_pixels(const Layer<T>& p, const Chunks& c, int q0, int count,
                                             eqc_shared_ptr<Image> images, const Visit& visit) {
    const int lane = int(threadIdx.x) % 32;
    const int down = 32 / p.pixels;
    const int across = 32 % p.pixels;
    int which = lane / p.pixels;
    int pixel = lane % p.pixels;
#pragma unroll 4
    for (int item = lane; item < count * p.pixels; item += 32) {
        const Image image = images[which];
        const int moved = int(image.what / kImagePermutation);
        const int q = (moved == 0 ? pixel : p.permutation[moved * p.pixels + pixel]) - q0;
        if (image.to >= 0 && unsigned(q) < unsigned(c.pixels)) {
            visit(image, pixel, int(image.what % kImagePermutation / kImageColumn) * c.pitch + q);
        }
        which += down;
        pixel += across;
        if (pixel >= p.pixels) {
            pixel -= p.pixels;
            ++which;
        }
    }
}

/* The images of the unit's columns into the filter. */
template <class T, int kColumns>
__device__ __forceinline__ void write_images(const Layer<T>& p, const Chunks& c, const Tile& tile, const Type& type,
                                             const Unit& unit, int q0, const Scratch<T, kColumns>& own) {
    const int column = int(threadIdx.x) % 32;
    const int field = (unit.first + column) / type.rows;
    Images row;
    if (column < unit.count) {
        row = Images(p.table_view(), type, unit.first + column - field * type.rows);
    }
    int end = row.count;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(kAllLanes, end, unsigned(distance));
        end += column >= distance ? before : 0;
    }
    const int begin = end - row.count;
    const int all = __shfl_sync(kAllLanes, end, 31);
    const auto filter = p.filter_written();
    for (int first = 0; first < all; first += kImages) {
        for (int k = max(first - begin, 0); k < row.count && begin + k < first + kImages; ++k) {
            own.images[begin + k - first] = find_image(p, tile, type, unit.at + field, row.first + k, column);
        }
        __syncwarp();
        visit_pixels(p, c, q0, min(kImages, all - first), own.images, [&](const Image& image, int pixel, int from) {
            const T value = own.function[from];
            filter[image.to + pixel] = image.what % 2 != 0 ? -value : value;
        });
        __syncwarp();
    }
}

template <class T, int kColumns, bool kStaged>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) expand_harmonics(Layer<T> p, Chunks c) {
    Tile tile = sort_tile(p);
    stage_harmonics(p, c);
    __syncthreads();
    find_types(tile);
    const int warp = int(threadIdx.x) / 32;
    const Scratch<T, kColumns> own(c, warp, kGathered, kImages);
    Deal deal(int(blockIdx.y) * kWarps + warp, int(gridDim.y) * kWarps);
    for (int at = 0; at < tile.fields;) {
        const int end = tile.end(at);
        const int number = tile.type[at];
        if (number < 0) {
            for (int field = at + deal.first(end - at); field < end; field += deal.workers()) {
                write_zeros(p, tile, field);
            }
        } else {
            const Type type(p.table_view(), number);
            const int columns = (end - at) * type.rows;
            const int units = (columns + kColumns - 1) / kColumns;
            for (int which = deal.first(units); which < units; which += deal.workers()) {
                const Unit unit{at, which * kColumns, min(kColumns, columns - which * kColumns)};
                for (int q0 = 0; q0 < p.pixels; q0 += c.pixels) {
                    Band band{0, 0};
                    do {
                        band.held = min(c.harmonics, type.harmonics - band.k0);
                        find_harmonics(p, c, type, band, own);
                        expand_coefficients(p, tile, type, unit, band, own);
                        expand_function<kStaged>(p, c, q0, band, own);
                        __syncwarp();
                        band.k0 += c.harmonics;
                    } while (band.k0 < type.harmonics);
                    write_images(p, c, tile, type, unit, q0, own);
                }
            }
        }
        at = end;
    }
}

/* ---- The transpose ---------------------------------------------------------------------------------------------- */

/* Whole pairs, or rows of one: rows first to first + rows of `fields` pairs of a type from field `at` of the tile. */
struct Rows {
    int at;
    int fields;
    int first;
    int rows;

    __device__ __forceinline__ int columns() const { return fields * rows; }
};

/* F[column, pixel] = sum of the filter over the images of the row, in their order; 0 behind the last pixel. */
template <class T, int kColumns>
__device__ __forceinline__ void gather_images(const Layer<T>& p, const Chunks& c, const Tile& tile, const Type& type,
                                              const Rows& part, int q0, const Scratch<T, kColumns>& own) {
    const int column = int(threadIdx.x) % 32;
    const int field = column / part.rows;
    Images row;
    if (column < part.columns()) {
        row = Images(p.table_view(), type, part.first + column - field * part.rows);
    }
    const T zeros[4] = {};
    for (int quad = column; quad < kColumns * c.pitch / 4; quad += 32) {
        store<T, 4>(own.function + 4 * quad, true, 4, zeros);
    }
    const auto filter = p.filter_read();
    const int most = max(group_max<32>(row.count), 1);
    for (int k = 0; k < most; ++k) {
        if (column < part.columns()) {
            own.images[column] = k < row.count
                                     ? find_image(p, tile, type, part.at + field, row.first + k, column)
                                     : Image{-1, 0u};
        }
        __syncwarp();
        visit_pixels(p, c, q0, part.columns(), own.images, [&](const Image& image, int pixel, int to) {
            const T value = filter[image.to + pixel];
            own.function[to] += image.what % 2 != 0 ? -value : value;
        });
        __syncwarp();
    }
}

/* C[k, column] (+)= sum over pixels from q0 on of harmonic[k, pixel] · F[column, pixel]: 2 x 2 a lane. */
template <bool kStaged, class T, int kColumns>
__device__ __forceinline__ void gather_coefficients(const Layer<T>& p, const Chunks& c, int q0, const Band& band,
                                                    const Scratch<T, kColumns>& own) {
    constexpr int kHalf = kColumns / 2;
    const int quads = (min(c.pixels, p.pixels - q0) + 3) / 4;
    for (int item = int(threadIdx.x) % 32; item < (band.held + 1) / 2 * kHalf; item += 32) {
        const int column = item % kHalf;
        const int k = item / kHalf * 2;
        const bool two = k + 1 < band.held;
        const int first[2] = {own.harmonic[k], own.harmonic[two ? k + 1 : k]};
        T sum[2][2] = {};
        for (int pixel = 0; pixel < 4 * quads; pixel += 4) {
            T left[2][4], right[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                load_harmonic<kStaged>(p, first[i], q0 + pixel, left[i]);
                load<T, 4>(own.function + ((column + i * kHalf) * c.pitch + pixel), true, 4, right[i]);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        sum[i][j] += left[i][n] * right[j][n];
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int to = (k + i) * kColumns + column + j * kHalf;
                if (i == 0 || two) {
                    own.coefficients[to] = q0 > 0 ? T(own.coefficients[to]) + sum[i][j] : sum[i][j];
                }
            }
        }
    }
}

/* Adds, for elements e0 to e0 + held, the products of values and coefficients: lanes share the rows of a slot. Slots of
 * a harmonic whose elements ascend have different ones and are added at once; others one by one. */
template <class T, int kColumns>
__device__ __forceinline__ void gather_weights(const Layer<T>& p, const Type& type, const Rows& part, const Band& band,
                                               int e0, int held, const Scratch<T, kColumns>& own) {
    const auto table = p.table_view();
    const auto elements = table + type.element;
    const auto values = p.values_view() + type.values + part.first;
    const auto used = table + type.used + 3 * band.k0;
    const int sharing = part.rows >= 4 ? 4 : part.rows >= 2 ? 2 : 1;
    const int lane = int(threadIdx.x) % 32 % sharing;
    const int place = int(threadIdx.x) % 32 / sharing;
    for (int k = 0; k < band.held; ++k) {
        const int slots = used[3 * k + 1];
        const int slot0 = used[3 * k + 2];
        const int items = part.fields * slots;
        for (int begin = 0; begin < items; begin += 32 / sharing) {
            const int item = begin + place;
            const int field = item / slots;
            const int slot = slot0 + item - field * slots;
            const int element = item < items ? int(elements[slot]) - e0 : -1;
            const bool ascends = item >= items || slot == slot0 || int(elements[slot - 1]) - e0 < element;
            const bool wanted = unsigned(element) < unsigned(held);
            T sum = 0;
            if (wanted) {
                const auto column = own.coefficients + (k * kColumns + field * part.rows);
                for (int row = lane; row < part.rows; row += sharing) {
                    sum += T(values[int64_t(slot) * type.rows + row]) * T(column[row]);
                }
            }
            for (int distance = sharing / 2; distance > 0; distance /= 2) {
                sum += __shfl_xor_sync(kAllLanes, sum, distance);
            }
            const bool adds = wanted && lane == 0;
            if (__all_sync(kAllLanes, ascends)) {
                if (adds) {
                    own.numbers[field * held + element] += sum;
                }
            } else {
                for (int turn = 0; turn < 32 / sharing; ++turn) {
                    __syncwarp();
                    if (adds && place == turn) {
                        own.numbers[field * held + element] += sum;
                    }
                }
            }
        }
        __syncwarp();
    }
}

template <class T, int kColumns>
__device__ __forceinline__ void clear_weights(int count, const Scratch<T, kColumns>& own) {
    for (int k = int(threadIdx.x) % 32; k < count; k += 32) {
        own.numbers[k] = T(0);
    }
    __syncwarp();
}

/* Adds what the rows of `part` give to the gradients of elements e0 to e0 + held. */
template <bool kStaged, class T, int kColumns>
__device__ __forceinline__ void gather_rows(const Layer<T>& p, const Chunks& c, const Tile& tile, const Type& type,
                                            const Rows& part, int e0, int held, const Scratch<T, kColumns>& own) {
    for (Band band{0, 0}; band.k0 < type.harmonics; band.k0 += c.harmonics) {
        band.held = min(c.harmonics, type.harmonics - band.k0);
        find_harmonics(p, c, type, band, own);
        for (int q0 = 0; q0 < p.pixels; q0 += c.pixels) {
            gather_images(p, c, tile, type, part, q0, own);
            gather_coefficients<kStaged>(p, c, q0, band, own);
            __syncwarp();
        }
        gather_weights(p, type, part, band, e0, held, own);
    }
}

/* Large pairs, one after the other: warps share the rows, and their sums are added in the order of the warps. */
template <bool kStaged, class T, int kColumns>
__device__ __forceinline__ void gather_by_block(const Layer<T>& p, const Chunks& c, const Tile& tile, const Type& type,
                                                int at, int end, const Scratch<T, kColumns>& own) {
    const auto weights = p.weights_written();
    const int warp = int(threadIdx.x) / 32;
    const Scratch<T, kColumns> first_warp(c, 0, kAccumulated, kColumns);
    for (int field = at; field < end; ++field) {
        for (int e0 = 0; e0 < type.elements; e0 += kAccumulated) {
            const int held = min(kAccumulated, type.elements - e0);
            clear_weights(held, own);
            for (int row = warp * kColumns; row < type.rows; row += kWarps * kColumns) {
                const Rows part{field, 1, row, min(kColumns, type.rows - row)};
                gather_rows<kStaged>(p, c, tile, type, part, e0, held, own);
            }
            __syncthreads();
            for (int k = int(threadIdx.x); k < held; k += kThreads) {
                T sum = first_warp.numbers[k];
                for (int other = 1; other < kWarps; ++other) {
                    sum += T(first_warp.numbers[other * (c.warp_bytes / int(sizeof(T))) + k]);
                }
                weights[int(tile.weight[field]) + e0 + k] = sum;
            }
            __syncthreads();
        }
    }
}

/* Small pairs: a warp has several at a time, or all rows of one. */
template <bool kStaged, class T, int kColumns>
__device__ __forceinline__ void gather_by_warp(const Layer<T>& p, const Chunks& c, const Tile& tile, const Type& type,
                                               int at, int end, Deal& deal, const Scratch<T, kColumns>& own) {
    const auto weights = p.weights_written();
    const int fitting = min(kColumns / max(type.rows, 1), kAccumulated / max(type.elements, 1));
    const int together = max(fitting, 1);
    const int units = (end - at + together - 1) / together;
    for (int unit = deal.first(units); unit < units; unit += deal.workers()) {
        const int first = at + unit * together;
        const int fields = min(together, end - first);
        clear_weights(fields * type.elements, own);
        for (int row = 0; row < type.rows; row += kColumns) {
            const Rows part{first, fields, row, min(kColumns, type.rows - row)};
            gather_rows<kStaged>(p, c, tile, type, part, 0, type.elements, own);
        }
        for (int field = 0; field < fields; ++field) {
            for (int k = int(threadIdx.x) % 32; k < type.elements; k += 32) {
                weights[int(tile.weight[first + field]) + k] = own.numbers[field * type.elements + k];
            }
        }
        __syncwarp();
    }
}

template <class T, int kColumns, bool kStaged>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) gather_harmonics(Layer<T> p, Chunks c) {
    Tile tile = sort_tile(p);
    stage_harmonics(p, c);
    __syncthreads();
    find_types(tile);
    const int warp = int(threadIdx.x) / 32;
    const Scratch<T, kColumns> own(c, warp, kAccumulated, kColumns);
    Deal deal(warp, kWarps);
    for (int at = 0; at < tile.fields;) {
        const int end = tile.end(at);
        const int number = tile.type[at];
        if (number >= 0) {
            const Type type(p.table_view(), number);
            if (type.rows > (kWarps - 1) * kColumns || type.elements > kAccumulated) {
                gather_by_block<kStaged>(p, c, tile, type, at, end, own);
            } else {
                gather_by_warp<kStaged>(p, c, tile, type, at, end, deal, own);
            }
        }
        at = end;
    }
}

}  // namespace eqc::steerable

#endif
