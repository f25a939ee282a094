/* The convolution at a list of sites and its gradients, on CUDA.
 *
 * forward: one launch, see site_product.cuh. Its floor is the larger of 2 taps C K sites / peak and
 * sizeof(T) (C touched rows + K sites + taps C K) / bandwidth; with 3x3 taps and C = K >= 24 it is the former on all
 * GPUs.
 *
 * backward: the cotangent behind the ReLU, partial sums of it for db and the map of readers in one launch
 * (cotangent.cuh); dx is the forward product over the rows of x with transposed weights, so every row is written once
 * and nothing is added atomically; dw and db are sums over fixed shares of the list, then over the shares.
 *
 * A list may end before its capacity: grids are for the capacity, and blocks beyond the end return.
 */
#include "block_sparse.h"

#include "../common/sums.cuh"
#include "../common/transpose.cuh"
#include "cotangent.cuh"
#include "launch.cuh"
#include "neighbours.cuh"
#include "site_product.cuh"
#include "weight_gradient.cuh"

namespace {

using Arguments = eqc_sites;
using eqc::ceil_div;

template <class T>
const T* typed(const void* pointer) {
    return static_cast<const T*>(pointer);
}

int check_geometry(const Arguments& a) {
    if (a.site == nullptr || eqc::any_below(0, {a.images, a.height, a.width, a.out_height, a.out_width}) ||
        eqc::any_below(1, {a.kernel_height, a.kernel_width, a.stride_height, a.stride_width, a.dilation_height,
                           a.dilation_width})) {
        return EQC_BAD_ARGUMENT;
    }
    if (eqc::any_above(eqc::kLargestSize,
                       {a.kernel_height, a.kernel_width, a.stride_height, a.stride_width, a.pad_height, a.pad_width,
                        -a.pad_height, -a.pad_width, a.dilation_height, a.dilation_width})) {
        return EQC_UNSUPPORTED;
    }
    const bool fits = a.taps == a.kernel_height * a.kernel_width &&
                      a.in_rows == eqc::product({a.images, a.height, a.width}, INT32_MAX) &&
                      a.out_rows == eqc::product({a.images, a.out_height, a.out_width}, INT32_MAX);
    return fits ? EQC_OK : EQC_BAD_ARGUMENT;
}

/* Sizes, and pointers that both directions need. */
int check(const Arguments& a) {
    if (a.sites < 0 || a.in_rows < 0 || a.out_rows < 0 || a.taps < 1 || a.channels < 1 || a.filters < 1 ||
        a.sites > a.out_rows) {
        return EQC_BAD_ARGUMENT;
    }
    constexpr int64_t kMost = int64_t(1) << 30;  // taps, C, K and their products in the kernels are ints
    if (a.in_rows > INT32_MAX || a.out_rows > INT32_MAX || a.taps > 65535 || a.filters > 65535 || a.channels > kMost ||
        a.taps * a.channels > kMost || a.taps * a.filters > kMost || a.channels > 8 * 65535) {
        return EQC_UNSUPPORTED;
    }
    return a.table == nullptr && a.sites > 0 ? check_geometry(a) : EQC_OK;
}

/* Of the listed sites among the rows of x. */
eqc::Neighbours inputs_of_sites(const Arguments& a) {
    eqc::Neighbours made{};
    made.table = a.table;
    made.rows = a.sites;
    made.taps = int(a.taps);
    made.site = a.site;
    if (a.table == nullptr) {
        made.down = {int(a.out_height), int(a.height), int(a.stride_height), int(a.pad_height), int(a.dilation_height)};
        made.across = {int(a.out_width), int(a.width), int(a.stride_width), int(a.pad_width), int(a.dilation_width)};
        made.kernel_width = int(a.kernel_width);
    }
    return made;
}

/* Of the rows of x among the cotangents; `reader` is what cotangent.cuh made, or NULL with the caller's inverse. */
eqc::Neighbours readers_of_inputs(const Arguments& a, const int32_t* reader, int64_t reader_size, bool masked) {
    eqc::Neighbours made{};
    made.rows = a.in_rows;
    made.taps = int(a.taps);
    if (a.table == nullptr) {
        made.down = {int(a.height), int(a.out_height), int(a.stride_height), int(a.pad_height), int(a.dilation_height)};
        made.across = {int(a.width), int(a.out_width), int(a.stride_width), int(a.pad_width), int(a.dilation_width)};
        made.kernel_width = int(a.kernel_width);
        made.reader = reader;
        made.reader_size = reader_size;
        return made;
    }
    made.table = reader == nullptr ? a.inverse : reader;
    made.by_entry = reader == nullptr;
    made.row_of_entry = masked ? nullptr : a.site;
    made.count = a.count;
    made.capacity = a.sites;
    return made;
}

template <class T>
size_t forward_workspace(const Arguments&) {
    return 0;
}

template <class T>
int forward(const Arguments& a, void*, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK) {
        return status;
    }
    if (a.w == nullptr || (a.in_rows > 0 && a.x == nullptr) || (a.sites > 0 && a.y == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    eqc::SiteProduct<T> p{};
    p.neighbours = inputs_of_sites(a);
    p.left = {typed<T>(a.x), int(a.channels), int(a.taps), eqc::in_vectors<T>(a.x, a.channels)};
    p.right = {typed<T>(a.w), int(a.taps * a.channels), int(a.filters), 0, eqc::in_vectors<T>(a.w, a.filters)};
    p.bias = typed<T>(a.bias);
    p.out = static_cast<T*>(a.y);
    p.rows = a.sites;
    p.count = a.count;
    p.out_row = a.site;
    p.out_rows = a.out_rows;
    p.relu = (a.flags & EQC_BS_RELU) != 0;
    p.vectors_out = eqc::in_vectors<T>(a.y, a.filters);
    eqc::launch_site_product<T>(status, p, stream);
    return status;
}

template <class T>
struct BackwardSpace {
    bool relu;
    int64_t cotangent_slices;
    int64_t weight_slices;
    int64_t reader_size;

    eqc::Space space;
    T* masked = nullptr;
    double* db_parts = nullptr;
    T* dw_parts = nullptr;
    T* wt = nullptr;
    int32_t* reader = nullptr;

    BackwardSpace(const Arguments& a, void* base) : space(base) {
        constexpr int64_t kBusy = 264;  // blocks: two on each of 132 multiprocessors
        const int64_t eighths = ceil_div(a.sites, 8);
        relu = (a.flags & EQC_BS_RELU) != 0;
        cotangent_slices = eighths < 1 ? 1 : eighths < kBusy ? eighths : kBusy;
        weight_slices = eqc::weight_slices(a.sites, a.taps * a.channels, a.filters);
        reader_size = a.table == nullptr ? a.out_rows : a.in_rows * a.taps;
        if (relu) {
            masked = space.take<T>(a.sites * a.filters);
        }
        if (a.db != nullptr) {
            db_parts = space.take<double>(cotangent_slices * a.filters);
        }
        if (a.dw != nullptr) {
            dw_parts = space.take<T>(weight_slices * a.taps * a.channels * a.filters);
        }
        if (a.dx != nullptr) {
            wt = space.take<T>(a.taps * a.channels * a.filters);
            if (a.table == nullptr || a.inverse == nullptr) {
                reader = space.take<int32_t>(reader_size);
            }
        }
    }
};

template <class T>
size_t backward_workspace(const Arguments& a) {
    return check(a) != EQC_OK ? 0 : BackwardSpace<T>(a, nullptr).space.used();
}

template <class T>
void prepare(int& status, const Arguments& a, const BackwardSpace<T>& space, cudaStream_t stream) {
    if (space.reader != nullptr) {
        eqc::fill_bytes(status, space.reader, 0xff, size_t(space.reader_size) * sizeof(int32_t), stream);
    }
    if (space.masked == nullptr && space.db_parts == nullptr && space.reader == nullptr) {
        return;
    }
    eqc::Cotangent<T> p{};
    p.dy = typed<T>(a.dy);
    p.y = space.relu ? typed<T>(a.y) : nullptr;
    p.masked = space.masked;
    p.partial = space.db_parts;
    p.site = a.site;
    p.count = a.count;
    p.sites = a.sites;
    p.filters = int(a.filters);
    p.reader = space.reader;
    p.reader_size = space.reader_size;
    p.table = a.table;
    p.taps = int(a.taps);
    const dim3 grid(unsigned(space.cotangent_slices), unsigned(ceil_div(a.filters, 32)));
    EQC_LAUNCH_CHECKED(status, (eqc::cotangent<T>), grid, dim3(eqc::kCotangentThreads), 0, stream, p);
}

template <class T>
void inputs_backward(int& status, const Arguments& a, const BackwardSpace<T>& space, const T* g, cudaStream_t stream) {
    const int taps = int(a.taps);
    const int channels = int(a.channels);
    const int filters = int(a.filters);
    eqc::launch_transpose<T>(status, typed<T>(a.w), space.wt, taps, channels, filters, stream);
    eqc::SiteProduct<T> p{};
    p.neighbours = readers_of_inputs(a, space.reader, space.reader_size, space.relu);
    p.left = {g, filters, taps, eqc::in_vectors<T>(g, filters)};
    p.right = {space.wt, taps * filters, channels, 0, eqc::in_vectors<T>(space.wt, channels)};
    p.out = static_cast<T*>(a.dx);
    p.rows = a.in_rows;
    p.out_rows = a.in_rows;
    p.vectors_out = eqc::in_vectors<T>(a.dx, channels);
    eqc::launch_site_product<T>(status, p, stream);
}

template <class T>
void weights_backward(int& status, const Arguments& a, const BackwardSpace<T>& space, const T* g,
                      cudaStream_t stream) {
    eqc::WeightGradient<T> p{};
    p.neighbours = inputs_of_sites(a);
    p.x = typed<T>(a.x);
    p.g = g;
    p.g_row = space.relu ? nullptr : a.site;
    p.partial = space.dw_parts;
    p.count = a.count;
    p.sites = a.sites;
    p.channels = int(a.channels);
    p.taps = int(a.taps);
    p.filters = int(a.filters);
    p.vectors_x = eqc::in_vectors<T>(a.x, a.channels);
    p.vectors_g = eqc::in_vectors<T>(g, a.filters);
    eqc::launch_weight_gradient<T>(status, p, space.weight_slices, stream);
    eqc::launch_reduce<T, T>(
        status, space.dw_parts,
        {a.taps * a.channels * a.filters, int(space.weight_slices), static_cast<T*>(a.dw)}, stream);
}

template <class T>
void clear(int& status, void* out, int64_t count, cudaStream_t stream) {
    if (out != nullptr) {
        eqc::fill_bytes(status, out, 0, size_t(count) * sizeof(T), stream);
    }
}

template <class T>
int backward(const Arguments& a, void* workspace, cudaStream_t stream) {
    int status = check(a);
    if (status != EQC_OK) {
        return status;
    }
    if (a.sites == 0) {
        clear<T>(status, a.dx, a.in_rows * a.channels, stream);
        clear<T>(status, a.dw, a.taps * a.channels * a.filters, stream);
        clear<T>(status, a.db, a.filters, stream);
        return status;
    }
    const BackwardSpace<T> space(a, workspace);
    if ((space.space.used() > 0 && workspace == nullptr) || a.dy == nullptr || (space.relu && a.y == nullptr) ||
        (a.dx != nullptr && a.w == nullptr) || (a.dw != nullptr && a.in_rows > 0 && a.x == nullptr)) {
        return EQC_BAD_ARGUMENT;
    }
    prepare<T>(status, a, space, stream);
    const T* g = space.relu ? space.masked : typed<T>(a.dy);
    if (a.dx != nullptr) {
        inputs_backward<T>(status, a, space, g, stream);
    }
    if (a.dw != nullptr) {
        weights_backward<T>(status, a, space, g, stream);
    }
    if (a.db != nullptr) {
        eqc::launch_reduce<double, T>(status, space.db_parts,
                                      {a.filters, int(space.cotangent_slices), static_cast<T*>(a.db)}, stream);
    }
    return status;
}

}  // namespace

EQC_DEFINE(site_forward, eqc_sites, forward)
EQC_DEFINE(site_backward, eqc_sites, backward)
