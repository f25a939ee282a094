/* The expansion by the sampled basis and its transpose, in units of work of a warp: products of the weights of several
 * pairs of one type with the basis [elements, out size · in size · pixels], which is read once for all of them.
 */
#ifndef EQC_STEERABLE_DIRECT_CUH
#define EQC_STEERABLE_DIRECT_CUH

#include "layer.cuh"

namespace eqc::steerable {

constexpr int kExpanded = 16;                // pairs of a unit of the expansion
constexpr int kElements = 32;                // of a pair whose weights a warp holds at a time
constexpr int kWeightPitch = kExpanded + 4;  // a 16-byte step of bank from element to element
constexpr int kGatheredPairs = 8;            // of a unit of the transpose

/* Number `number` of a pair's block, from the block's first number in the filter: its rows are not neighbours there. */
template <class T>
__device__ __forceinline__ int place_in_filter(const Layer<T>& p, int length, int number) {
    const int row = number / length;
    return row * p.in_channels * p.pixels + number - row * length;
}

template <class T>
__device__ __forceinline__ int first_in_filter(const Layer<T>& p, const Tile& tile, int field) {
    return (tile.out_channel * p.in_channels + int(tile.channel[field])) * p.pixels;
}

/* 32 numbers of the blocks of up to kExpanded pairs from `field` on. */
template <class T>
__device__ __forceinline__ void expand_numbers(const Layer<T>& p, const Tile& tile, const Type& type, int field,
                                               int fields, int number, int numbers, eqc_shared_ptr<T> held) {
    const auto weights = p.weights_read();
    const auto values = p.values_view() + type.values + number;
    const int lane = int(threadIdx.x) % 32;
    T sum[kExpanded] = {};
    for (int first = 0; first < type.elements; first += kElements) {
        for (int k = 0; k < kExpanded; ++k) {
            const bool there = k < fields && first + lane < type.elements;
            held[lane * kWeightPitch + k] = there ? T(weights[int(tile.weight[field + k]) + first + lane]) : T(0);
        }
        __syncwarp();
        const int until = min(kElements, type.elements - first);
#pragma unroll 4
        for (int element = 0; element < until; ++element) {
            const T value = number < numbers ? T(values[int64_t(first + element) * numbers]) : T(0);
            T weight[kExpanded];
            load<T, kExpanded>(held + element * kWeightPitch, true, kExpanded, weight);
#pragma unroll
            for (int k = 0; k < kExpanded; ++k) {
                sum[k] += weight[k] * value;
            }
        }
        __syncwarp();
    }
    if (number < numbers) {
        const auto filter = p.filter_written();
        const int place = place_in_filter(p, type.in_size * p.pixels, number);
#pragma unroll
        for (int k = 0; k < kExpanded; ++k) {
            if (k < fields) {
                filter[first_in_filter(p, tile, field + k) + place] = sum[k];
            }
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) expand_basis(Layer<T> p) {
    Tile tile = sort_tile(p);
    __syncthreads();
    find_types(tile);
    const int warp = int(threadIdx.x) / 32;
    const auto held = eqc_dynamic_shared<T>(sizeof(T) * warp * kElements * kWeightPitch);
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
            const int numbers = type.out_size * type.in_size * p.pixels;
            const int across = (numbers + 31) / 32;
            const int units = (end - at + kExpanded - 1) / kExpanded * across;
            for (int unit = deal.first(units); unit < units; unit += deal.workers()) {
                const int group = unit / across;
                const int field = at + group * kExpanded;
                expand_numbers(p, tile, type, field, min(kExpanded, end - field),
                               (unit - group * across) * 32 + int(threadIdx.x) % 32, numbers, held);
            }
        }
        at = end;
    }
}

/* Gradients of kTogether elements from `element` on of up to kGatheredPairs pairs from `field` on; lanes share the
 * numbers of a block. */
template <int kTogether, class T>
__device__ __forceinline__ void gather_elements(const Layer<T>& p, const Tile& tile, const Type& type, int field,
                                                int fields, int element, int numbers) {
    const auto filter = p.filter_read();
    const auto values = p.values_view() + type.values;
    const int lane = int(threadIdx.x) % 32;
    const int length = type.in_size * p.pixels;
    T sum[kTogether][kGatheredPairs] = {};
    for (int number = lane; number < numbers; number += 32) {
        const int place = place_in_filter(p, length, number);
        T given[kGatheredPairs];
#pragma unroll
        for (int k = 0; k < kGatheredPairs; ++k) {
            given[k] = k < fields ? T(filter[first_in_filter(p, tile, field + k) + place]) : T(0);
        }
#pragma unroll
        for (int b = 0; b < kTogether; ++b) {
            const T value =
                element + b < type.elements ? T(values[int64_t(element + b) * numbers + number]) : T(0);
#pragma unroll
            for (int k = 0; k < kGatheredPairs; ++k) {
                sum[b][k] += given[k] * value;
            }
        }
    }
    const auto weights = p.weights_written();
#pragma unroll
    for (int b = 0; b < kTogether; ++b) {
        T total = group_sums<kGatheredPairs>(sum[b], lane);
#pragma unroll
        for (int distance = kGatheredPairs; distance < 32; distance *= 2) {
            total += __shfl_xor_sync(kAllLanes, total, distance);
        }
        if (lane < fields && element + b < type.elements) {
            weights[int(tile.weight[field + lane]) + element + b] = total;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gather_basis(Layer<T> p) {
    constexpr int kTogether = sizeof(T) == 4 ? 8 : 4;
    Tile tile = sort_tile(p);
    __syncthreads();
    find_types(tile);
    Deal deal(int(blockIdx.y) * kWarps + int(threadIdx.x) / 32, int(gridDim.y) * kWarps);
    for (int at = 0; at < tile.fields;) {
        const int end = tile.end(at);
        const int number = tile.type[at];
        if (number >= 0) {
            const Type type(p.table_view(), number);
            const int numbers = type.out_size * type.in_size * p.pixels;
            const int across = (type.elements + kTogether - 1) / kTogether;
            const int units = (end - at + kGatheredPairs - 1) / kGatheredPairs * across;
            for (int unit = deal.first(units); unit < units; unit += deal.workers()) {
                const int group = unit / across;
                const int field = at + group * kGatheredPairs;
                gather_elements<kTogether>(p, tile, type, field, min(kGatheredPairs, end - field),
                                           (unit - group * across) * kTogether, numbers);
            }
        }
        at = end;
    }
}

}  // namespace eqc::steerable

#endif
