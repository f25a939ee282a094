/* Spatially sparse convolution as PyTorch operators, one for each operation of block_sparse.h.
 *
 * Where a kernel leaves part of its result alone there are two operators: one that makes the result from a base, and
 * one with a trailing underscore that computes into a tensor of the caller.
 */
#include <algorithm>
#include <vector>

#include "../block_sparse/block_sparse.h"
#include "torch_call.h"

namespace {

using eqc::Call;
using eqc::Tensor;
using eqc::text;
using Integers = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Shape2 = std::array<int64_t, 2>;
using Shape3 = std::array<int64_t, 3>;
using Shape4 = std::array<int64_t, 4>;

const eqc::Operation<eqc_mask> mask_blocks_operation("mask_blocks");
const eqc::Operation<eqc_mask> mask_pixels_operation("mask_pixels");
const eqc::Operation<eqc_blocks> block_gather_operation("block_gather");
const eqc::Operation<eqc_blocks> block_scatter_operation("block_scatter");
const eqc::Operation<eqc_blocks> block_pixels_operation("block_pixels");
const eqc::Operation<eqc_sites> site_forward_operation("site_forward");
const eqc::Operation<eqc_sites> site_backward_operation("site_backward");
const eqc::Operation<eqc_neighbours> site_outputs_operation("site_outputs");
const eqc::Operation<eqc_neighbours> site_table_operation("site_table");
const eqc::Operation<eqc_residual> residual_forward_operation("residual_forward");

constexpr int64_t most_positions = int64_t(1) << 31;

/* The product, or -1 for a factor below 0 or a product that no list of int32 numbers could name. */
int64_t positions(const int64_t* factors, size_t number) {
    bool empty = false;
    for (size_t k = 0; k < number; ++k) {
        if (factors[k] < 0) return -1;
        empty = empty || factors[k] == 0;
    }
    int64_t product = 1;
    for (size_t k = 0; !empty && k < number; ++k) {
        if (factors[k] >= most_positions || product * factors[k] >= most_positions) return -1;
        product *= factors[k];
    }
    return empty ? 0 : product;
}

void check_integers(const char* name, const Integers& values, size_t number, const char* meaning) {
    STD_TORCH_CHECK(values.size() == number, name, " has ", values.size(), " numbers: expected ", number, ", ",
                    meaning);
}

/* Sizes, strides and offsets of windows, the same fields in both structs that have them. */
template <typename Arguments>
void set_window(const Integers& window, Arguments& a) {
    check_integers("window", window, 6, "the height and width of size, stride and offset");
    const int64_t largest = std::max({window[0], window[1], window[2], window[3]});
    const int64_t farthest = std::max({window[4], window[5], -window[4], -window[5]});
    STD_TORCH_CHECK(*std::min_element(window.begin(), window.begin() + 4) >= 1 && largest < most_positions &&
                        farthest < most_positions,
                    "window is ", text(torch::headeronly::IntHeaderOnlyArrayRef(window.data(), window.size())),
                    ": sizes and strides must be at least 1, and all numbers below 2^31");
    a.window_height = window[0];
    a.window_width = window[1];
    a.stride_height = window[2];
    a.stride_width = window[3];
    a.offset_height = window[4];
    a.offset_width = window[5];
}

// Masks.

template <size_t columns>
Two reduce(const eqc::Operation<eqc_mask>& operation, const Tensor& mask, int64_t grid_height, int64_t grid_width,
           const Integers& window, double tolerance, int64_t flags, int64_t threads, const std::string& core) {
    const bool bytes = eqc::raw_dtype(mask) == aoti_torch_dtype_bool();
    Call call = bytes ? Call::without_reals(operation, mask, core) : Call(operation, mask, core);
    STD_TORCH_CHECK(mask.dim() == 3, "mask has shape ", text(mask.sizes()), ": expected [N, H, W]");
    eqc_mask a = {};
    a.images = mask.size(0);
    a.height = mask.size(1);
    a.width = mask.size(2);
    a.grid_height = grid_height;
    a.grid_width = grid_width;
    const int64_t windows = positions(Shape3{a.images, grid_height, grid_width}.data(), 3);
    STD_TORCH_CHECK(windows >= 0 && positions(Shape3{a.images, a.height, a.width}.data(), 3) >= 0,
                    "mask has shape ", text(mask.sizes()), " and the grid is [", grid_height, ", ", grid_width,
                    "]: neither may have an extent below 0 or 2^31 entries");
    set_window(window, a);
    a.tolerance = tolerance;
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    if (bytes)
        a.bytes = call.bytes("mask", mask);
    else
        a.mask = call.input<3>("mask", mask, {a.images, a.height, a.width});
    Tensor index = columns == 1 ? call.index_output<1>({windows}) : call.index_output<2>({windows, int64_t(columns)});
    Tensor count = call.index_output<1>({1});
    a.index = static_cast<int32_t*>(Call::memory_of(index));
    a.count = static_cast<int32_t*>(Call::memory_of(count));
    call.run(operation, a);
    return {index, count};
}

Two mask_blocks(const Tensor& mask, int64_t grid_height, int64_t grid_width, const Integers& window, double tolerance,
                int64_t flags, int64_t threads, const std::string& core) {
    return reduce<3>(mask_blocks_operation, mask, grid_height, grid_width, window, tolerance, flags, threads, core);
}

Two mask_pixels(const Tensor& mask, int64_t grid_height, int64_t grid_width, const Integers& window, double tolerance,
                int64_t flags, int64_t threads, const std::string& core) {
    return reduce<1>(mask_pixels_operation, mask, grid_height, grid_width, window, tolerance, flags, threads, core);
}

// Blocks.

eqc_blocks blocks_arguments(Call& call, const Tensor& index, const Maybe& count, const Shape4& image,
                            const Integers& window, int64_t flags, int64_t threads) {
    STD_TORCH_CHECK(index.dim() == 2, "index has shape ", text(index.sizes()), ": expected [B, 3]");
    STD_TORCH_CHECK(positions(image.data(), 3) >= 0 && image[3] >= 0, "the image has shape ",
                    text(torch::headeronly::IntHeaderOnlyArrayRef(image.data(), 4)),
                    ": no extent may be below 0, and no more than 2^31 - 1 pixels are allowed");
    eqc_blocks a = {};
    a.images = image[0];
    a.height = image[1];
    a.width = image[2];
    a.channels = image[3];
    a.rows = index.size(0);
    set_window(window, a);
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    a.index = call.indices<2>("index", index, {a.rows, 3});
    a.count = call.count("count", count);
    return a;
}

Shape4 shape_of_blocks(const eqc_blocks& a) {
    if (a.flags & EQC_BS_TRANSPOSE) return {a.rows, a.channels, a.window_height, a.window_width};
    return {a.rows, a.window_height, a.window_width, a.channels};
}

Tensor block_gather(const Tensor& x, const Tensor& index, const Maybe& count, const Integers& window, int64_t flags,
                    int64_t threads, const std::string& core) {
    Call call(block_gather_operation, x, core);
    STD_TORCH_CHECK(x.dim() == 4, "x has shape ", text(x.sizes()), ": expected [N, H, W, C]");
    const Shape4 image{x.size(0), x.size(1), x.size(2), x.size(3)};
    eqc_blocks a = blocks_arguments(call, index, count, image, window, flags, threads);
    a.x = call.input("x", x, image);
    Tensor blocks = call.output(shape_of_blocks(a));
    a.blocks = Call::memory_of(blocks);
    call.run(block_gather_operation, a);
    return blocks;
}

eqc_blocks scatter_arguments(Call& call, const Maybe& blocks, const Tensor& index, const Maybe& count,
                             const Shape4& image, const Integers& window, int64_t flags, int64_t threads) {
    eqc_blocks a = blocks_arguments(call, index, count, image, window, flags, threads);
    if (blocks) a.blocks_in = call.input("blocks", *blocks, shape_of_blocks(a));
    return a;
}

Tensor block_scatter(const Maybe& blocks, const Tensor& index, const Maybe& count, const Maybe& base,
                     const Integers& image, const Integers& window, int64_t flags, int64_t threads,
                     const std::string& core) {
    STD_TORCH_CHECK(blocks || base, "blocks and base are both missing");
    check_integers("image", image, 4, "its shape");
    Call call(block_scatter_operation, blocks ? *blocks : *base, core);
    const Shape4 shape{image[0], image[1], image[2], image[3]};
    eqc_blocks a = scatter_arguments(call, blocks, index, count, shape, window, flags, threads);
    if (base) a.base = call.input("base", *base, shape);
    Tensor y = call.output(shape);
    a.y = Call::memory_of(y);
    call.run(block_scatter_operation, a);
    return y;
}

void block_scatter_(Tensor y, const Tensor& blocks, const Tensor& index, const Maybe& count, const Integers& window,
                    int64_t flags, int64_t threads, const std::string& core) {
    Call call(block_scatter_operation, y, core);
    STD_TORCH_CHECK(y.dim() == 4, "y has shape ", text(y.sizes()), ": expected [N, H, W, C]");
    const Shape4 image{y.size(0), y.size(1), y.size(2), y.size(3)};
    eqc_blocks a = scatter_arguments(call, blocks, index, count, image, window, flags, threads);
    a.y = call.target("y", y, image);
    call.check_apart("y", y, "blocks", blocks);
    a.base = a.y;
    call.run(block_scatter_operation, a);
}

Two block_pixels(const Tensor& index, const Maybe& count, const Integers& image, const Integers& window,
                 int64_t threads, const std::string& core) {
    Call call = Call::without_reals(block_pixels_operation, index, core);
    check_integers("image", image, 3, "its shape without channels");
    eqc_blocks a = blocks_arguments(call, index, count, {image[0], image[1], image[2], 1}, window, 0, threads);
    Tensor pixels = call.index_output<1>({a.images * a.height * a.width});
    Tensor made = call.index_output<1>({1});
    a.pixels = static_cast<int32_t*>(Call::memory_of(pixels));
    a.pixel_count = static_cast<int32_t*>(Call::memory_of(made));
    call.run(block_pixels_operation, a);
    return {pixels, made};
}

// Convolutions at sites.

/* What forward and backward have in common: everything but the bias, y and the gradients. */
eqc_sites sites_arguments(Call& call, const Tensor& x, const Tensor& w, const Maybe& site, const Maybe& count,
                          const Maybe& table, const Integers& geometry, int64_t flags, int64_t threads) {
    STD_TORCH_CHECK(w.dim() >= 3, "w has shape ", text(w.sizes()), ": expected [taps..., C, K]");
    STD_TORCH_CHECK(bool(site) != bool(table), "exactly one of site and table is needed");
    eqc_sites a = {};
    const auto extents = w.sizes();
    const size_t rank = extents.size();
    a.taps = positions(extents.data(), rank - 2);
    a.channels = extents[rank - 2];
    a.filters = extents[rank - 1];
    STD_TORCH_CHECK(a.taps >= 1, "w has shape ", text(extents), ": at least one tap is needed");
    if (table) {
        STD_TORCH_CHECK(table->dim() == 2 && x.dim() == 2, "table and x have shapes ", text(table->sizes()), " and ",
                        text(x.sizes()), ": expected [sites, taps] and [rows, C]");
        a.sites = a.out_rows = table->size(0);
        a.in_rows = x.size(0);
        a.table = call.indices<2>("table", *table, {a.sites, a.taps});
        a.x = call.input<2>("x", x, {a.in_rows, a.channels});
    } else {
        STD_TORCH_CHECK(x.dim() == 4 && site->dim() == 1, "x and site have shapes ", text(x.sizes()), " and ",
                        text(site->sizes()), ": expected [N, H, W, C] and [P]");
        check_integers("geometry", geometry, 10,
                       "the height and width of output, kernel, stride, padding in front and dilation");
        a.sites = site->size(0);
        a.images = x.size(0);
        a.height = x.size(1);
        a.width = x.size(2);
        a.out_height = geometry[0];
        a.out_width = geometry[1];
        a.kernel_height = geometry[2];
        a.kernel_width = geometry[3];
        a.stride_height = geometry[4];
        a.stride_width = geometry[5];
        a.pad_height = geometry[6];
        a.pad_width = geometry[7];
        a.dilation_height = geometry[8];
        a.dilation_width = geometry[9];
        a.in_rows = positions(Shape3{a.images, a.height, a.width}.data(), 3);
        a.out_rows = positions(Shape3{a.images, a.out_height, a.out_width}.data(), 3);
        const bool whole = std::all_of(geometry.begin(), geometry.end(),
                                       [](int64_t number) { return number >= 0 && number < most_positions; });
        STD_TORCH_CHECK(whole && a.in_rows >= 0 && a.out_rows >= 0 && a.stride_height >= 1 && a.stride_width >= 1 &&
                            a.dilation_height >= 1 && a.dilation_width >= 1 &&
                            positions(Shape2{a.kernel_height, a.kernel_width}.data(), 2) == a.taps,
                        "geometry is ", text(torch::headeronly::IntHeaderOnlyArrayRef(geometry.data(), 10)),
                        ", which is impossible for x of shape ", text(x.sizes()), " and w of shape ", text(extents));
        a.site = call.indices<1>("site", *site, {a.sites});
        a.x = call.input<4>("x", x, {a.images, a.height, a.width, a.channels});
    }
    a.w = call.any_shape("w", w);
    a.count = call.count("count", count);
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    return a;
}

Shape4 shape_of_output(const eqc_sites& a) { return {a.images, a.out_height, a.out_width, a.filters}; }

Tensor site_forward(const Tensor& x, const Tensor& w, const Maybe& bias, const Maybe& base, const Maybe& site,
                    const Maybe& count, const Maybe& table, const Integers& geometry, int64_t flags, int64_t threads,
                    const std::string& core) {
    Call call(site_forward_operation, x, core);
    eqc_sites a = sites_arguments(call, x, w, site, count, table, geometry, flags, threads);
    if (bias) a.bias = call.input<1>("bias", *bias, {a.filters});
    STD_TORCH_CHECK(!(table && base), "base is for images: with a table every row is computed");
    Tensor y = table ? call.output<2>({a.out_rows, a.filters}) : call.output(shape_of_output(a));
    if (base) {
        call.input("base", *base, shape_of_output(a));
        torch::stable::copy_(y, *base);
    } else if (!table || count) {
        torch::stable::zero_(y);
    }
    a.y = Call::memory_of(y);
    call.run(site_forward_operation, a);
    return y;
}

void site_forward_(Tensor y, const Tensor& x, const Tensor& w, const Maybe& bias, const Tensor& site,
                   const Maybe& count, const Integers& geometry, int64_t flags, int64_t threads,
                   const std::string& core) {
    Call call(site_forward_operation, x, core);
    eqc_sites a = sites_arguments(call, x, w, site, count, std::nullopt, geometry, flags, threads);
    if (bias) a.bias = call.input<1>("bias", *bias, {a.filters});
    a.y = call.target("y", y, shape_of_output(a));
    call.check_apart("y", y, "x", x);
    call.run(site_forward_operation, a);
}

/* Bits of `wanted`. */
enum Gradient { DX = 1, DW = 2, DB = 4 };

std::tuple<Tensor, Tensor, Tensor> site_backward(const Tensor& dy, const Maybe& y, const Tensor& x, const Tensor& w,
                                                 const Maybe& site, const Maybe& count, const Maybe& table,
                                                 const Maybe& inverse, const Integers& geometry, int64_t wanted,
                                                 int64_t flags, int64_t threads, const std::string& core) {
    Call call(site_backward_operation, x, core);
    eqc_sites a = sites_arguments(call, x, w, site, count, table, geometry, flags, threads);
    const auto output = [&](const char* name, const Tensor& tensor) {
        return table ? call.input<2>(name, tensor, {a.out_rows, a.filters})
                     : call.input(name, tensor, shape_of_output(a));
    };
    a.dy = output("dy", dy);
    STD_TORCH_CHECK(y || !(flags & EQC_BS_RELU), "y is missing: the derivative of ReLU is read from it");
    if (y) a.y = const_cast<void*>(output("y", *y));
    STD_TORCH_CHECK(table || !inverse, "inverse is for a table");
    if (inverse) a.inverse = call.indices<2>("inverse", *inverse, {a.in_rows, a.taps});
    Tensor dx = wanted & DX ? call.output_like(x) : call.output<1>({0});
    Tensor dw = wanted & DW ? call.output_like(w) : call.output<1>({0});
    Tensor db = wanted & DB ? call.output<1>({a.filters}) : call.output<1>({0});
    if (wanted & DX) a.dx = Call::memory_of(dx);
    if (wanted & DW) a.dw = Call::memory_of(dw);
    if (wanted & DB) a.db = Call::memory_of(db);
    call.run(site_backward_operation, a);
    return {dx, dw, db};
}

// Neighbours of sites.

enum Axis { EXTENT, OUT_EXTENT, KERNEL, STRIDE, PAD, DILATION, PER_AXIS };

/* `geometry`: extents, extents of the output, kernel, strides, padding, dilation, each for every axis. */
eqc_neighbours neighbours_arguments(Call& call, const Tensor& coords, const Maybe& count, int64_t batch,
                                    const Integers& geometry, int64_t flags, int64_t threads) {
    eqc_neighbours a = {};
    a.axes = int64_t(geometry.size() / PER_AXIS);
    STD_TORCH_CHECK(geometry.size() % PER_AXIS == 0 && a.axes >= 1 && a.axes <= 4, "geometry has ", geometry.size(),
                    " numbers: expected 6 for each of 1 to 4 axes");
    STD_TORCH_CHECK(coords.dim() == 2, "coords has shape ", text(coords.sizes()), ": expected [M, 1 + axes]");
    a.batch = batch;
    a.rows = coords.size(0);
    int64_t* const fields[PER_AXIS][4] = {
        {&a.extent_0, &a.extent_1, &a.extent_2, &a.extent_3},
        {&a.out_extent_0, &a.out_extent_1, &a.out_extent_2, &a.out_extent_3},
        {&a.kernel_0, &a.kernel_1, &a.kernel_2, &a.kernel_3},
        {&a.stride_0, &a.stride_1, &a.stride_2, &a.stride_3},
        {&a.pad_0, &a.pad_1, &a.pad_2, &a.pad_3},
        {&a.dilation_0, &a.dilation_1, &a.dilation_2, &a.dilation_3},
    };
    bool possible = batch >= 0 && batch < most_positions;
    for (int part = 0; part < PER_AXIS; ++part) {
        const int64_t least = part == KERNEL || part == STRIDE || part == DILATION ? 1 : 0;
        for (int64_t axis = 0; axis < a.axes; ++axis) {
            const int64_t number = *fields[part][axis] = geometry[part * a.axes + axis];
            possible = possible && number >= least && number < most_positions;
        }
    }
    STD_TORCH_CHECK(possible, "geometry is ",
                    text(torch::headeronly::IntHeaderOnlyArrayRef(geometry.data(), geometry.size())), " and batch is ",
                    batch,
                    ": kernel, strides and dilation must be at least 1, and no number below 0 or above 2^31 - 1");
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    a.coords = call.indices<2>("coords", coords, {a.rows, 1 + a.axes});
    a.count = call.count("count", count);
    return a;
}

/* Every output site is a tap of an input site, and a place of the output. */
int64_t most_outputs(const eqc_neighbours& a, const Integers& geometry) {
    const int64_t limit = most_positions - 1;
    int64_t by_sites = a.rows, by_places = a.batch;
    for (int64_t axis = 0; axis < a.axes; ++axis) {
        const int64_t out = geometry[OUT_EXTENT * a.axes + axis];
        by_sites = std::min(limit, by_sites * std::min(out, geometry[KERNEL * a.axes + axis]));
        by_places = std::min(limit, by_places * out);
    }
    return std::min(by_sites, by_places);
}

Two site_outputs(const Tensor& coords, const Maybe& count, int64_t batch, const Integers& geometry, int64_t flags,
                 int64_t threads, const std::string& core) {
    Call call = Call::without_reals(site_outputs_operation, coords, core);
    eqc_neighbours a = neighbours_arguments(call, coords, count, batch, geometry, flags, threads);
    a.out_rows = most_outputs(a, geometry);
    Tensor made = call.index_output<2>({a.out_rows, 1 + a.axes});
    Tensor made_count = call.index_output<1>({1});
    a.made_coords = static_cast<int32_t*>(Call::memory_of(made));
    a.made_count = static_cast<int32_t*>(Call::memory_of(made_count));
    call.run(site_outputs_operation, a);
    return {made, made_count};
}

Tensor site_table(const Tensor& coords, const Maybe& count, const Tensor& out_coords, const Maybe& out_count,
                  int64_t batch, const Integers& geometry, int64_t flags, int64_t threads, const std::string& core) {
    Call call = Call::without_reals(site_table_operation, coords, core);
    eqc_neighbours a = neighbours_arguments(call, coords, count, batch, geometry, flags, threads);
    const int64_t taps = positions(geometry.data() + KERNEL * a.axes, size_t(a.axes));
    STD_TORCH_CHECK(taps >= 1, "the kernel has 2^31 taps or more");
    STD_TORCH_CHECK(out_coords.dim() == 2, "out_coords has shape ", text(out_coords.sizes()),
                    ": expected [M, 1 + axes]");
    a.out_rows = out_coords.size(0);
    a.out_coords = call.indices<2>("out_coords", out_coords, {a.out_rows, 1 + a.axes});
    a.out_count = call.count("out_count", out_count);
    Tensor table = call.index_output<2>({a.out_rows, taps});
    a.table = static_cast<int32_t*>(Call::memory_of(table));
    call.run(site_table_operation, a);
    return table;
}

// The residual unit.

eqc_residual residual_arguments(Call& call, const Tensor& x, const Tensor& site, const Maybe& count,
                                const Maybe& scale1, const Maybe& shift1, const Tensor& w1, const Tensor& scale2,
                                const Tensor& shift2, const Tensor& w2, const Tensor& scale3, const Tensor& shift3,
                                const Tensor& w3, int64_t flags, int64_t threads) {
    STD_TORCH_CHECK(x.dim() == 4 && site.dim() == 1 && w1.dim() == 2, "x, site and w1 have shapes ", text(x.sizes()),
                    ", ", text(site.sizes()), " and ", text(w1.sizes()), ": expected [N, H, W, C], [P] and [C, M]");
    STD_TORCH_CHECK(bool(scale1) == bool(shift1), "scale1 and shift1 go together");
    eqc_residual a = {};
    a.images = x.size(0);
    a.height = x.size(1);
    a.width = x.size(2);
    a.channels = x.size(3);
    a.bottleneck = w1.size(1);
    a.sites = site.size(0);
    STD_TORCH_CHECK(positions(Shape3{a.images, a.height, a.width}.data(), 3) >= 0, "x has shape ", text(x.sizes()),
                    ": no more than 2^31 - 1 pixels are allowed");
    a.flags = int32_t(flags);
    a.threads = call.threads(threads);
    a.site = call.indices<1>("site", site, {a.sites});
    a.count = call.count("count", count);
    const int64_t wide = a.channels, narrow = a.bottleneck;
    a.x = call.input<4>("x", x, {a.images, a.height, a.width, wide});
    if (scale1) a.scale1 = call.input<1>("scale1", *scale1, {wide});
    if (shift1) a.shift1 = call.input<1>("shift1", *shift1, {wide});
    a.w1 = call.input<2>("w1", w1, {wide, narrow});
    a.scale2 = call.input<1>("scale2", scale2, {narrow});
    a.shift2 = call.input<1>("shift2", shift2, {narrow});
    a.w2 = call.input<4>("w2", w2, {3, 3, narrow, narrow});
    a.scale3 = call.input<1>("scale3", scale3, {narrow});
    a.shift3 = call.input<1>("shift3", shift3, {narrow});
    a.w3 = call.input<2>("w3", w3, {narrow, wide});
    return a;
}

Tensor residual_forward(const Tensor& x, const Tensor& site, const Maybe& count, const Maybe& scale1,
                        const Maybe& shift1, const Tensor& w1, const Tensor& scale2, const Tensor& shift2,
                        const Tensor& w2, const Tensor& scale3, const Tensor& shift3, const Tensor& w3, int64_t flags,
                        int64_t threads, const std::string& core) {
    Call call(residual_forward_operation, x, core);
    eqc_residual a = residual_arguments(call, x, site, count, scale1, shift1, w1, scale2, shift2, w2, scale3, shift3,
                                        w3, flags, threads);
    Tensor y = call.output<4>({a.images, a.height, a.width, a.channels});
    torch::stable::copy_(y, x);
    a.y = Call::memory_of(y);
    call.run(residual_forward_operation, a);
    return y;
}

void residual_forward_(Tensor y, const Tensor& x, const Tensor& site, const Maybe& count, const Maybe& scale1,
                       const Maybe& shift1, const Tensor& w1, const Tensor& scale2, const Tensor& shift2,
                       const Tensor& w2, const Tensor& scale3, const Tensor& shift3, const Tensor& w3, int64_t flags,
                       int64_t threads, const std::string& core) {
    Call call(residual_forward_operation, x, core);
    eqc_residual a = residual_arguments(call, x, site, count, scale1, shift1, w1, scale2, shift2, w2, scale3, shift3,
                                        w3, flags, threads);
    a.y = call.target<4>("y", y, {a.images, a.height, a.width, a.channels});
    call.check_apart("y", y, "x", x);
    call.run(residual_forward_operation, a);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(eqconv, m) {
    const char* const reduce =
        "(Tensor mask, int grid_height, int grid_width, int[] window, float tolerance, int flags, int threads, "
        "str core) -> (Tensor index, Tensor count)";
    m.def((std::string("mask_blocks") + reduce).c_str());
    m.def((std::string("mask_pixels") + reduce).c_str());
    m.def(
        "block_gather(Tensor x, Tensor index, Tensor? count, int[] window, int flags, int threads, str core) "
        "-> Tensor");
    m.def(
        "block_scatter(Tensor? blocks, Tensor index, Tensor? count, Tensor? base, int[] image, int[] window, "
        "int flags, int threads, str core) -> Tensor");
    m.def(
        "block_scatter_(Tensor(a!) y, Tensor blocks, Tensor index, Tensor? count, int[] window, int flags, "
        "int threads, str core) -> ()");
    m.def(
        "block_pixels(Tensor index, Tensor? count, int[] image, int[] window, int threads, str core) "
        "-> (Tensor pixels, Tensor count)");
    m.def(
        "site_forward(Tensor x, Tensor w, Tensor? bias, Tensor? base, Tensor? site, Tensor? count, Tensor? table, "
        "int[] geometry, int flags, int threads, str core) -> Tensor");
    m.def(
        "site_forward_(Tensor(a!) y, Tensor x, Tensor w, Tensor? bias, Tensor site, Tensor? count, int[] geometry, "
        "int flags, int threads, str core) -> ()");
    m.def(
        "site_backward(Tensor dy, Tensor? y, Tensor x, Tensor w, Tensor? site, Tensor? count, Tensor? table, "
        "Tensor? inverse, int[] geometry, int wanted, int flags, int threads, str core) "
        "-> (Tensor dx, Tensor dw, Tensor db)");
    m.def(
        "site_outputs(Tensor coords, Tensor? count, int batch, int[] geometry, int flags, int threads, str core) "
        "-> (Tensor coords, Tensor count)");
    m.def(
        "site_table(Tensor coords, Tensor? count, Tensor out_coords, Tensor? out_count, int batch, int[] geometry, "
        "int flags, int threads, str core) -> Tensor");
    const std::string unit =
        "Tensor x, Tensor site, Tensor? count, Tensor? scale1, Tensor? shift1, Tensor w1, Tensor scale2, "
        "Tensor shift2, Tensor w2, Tensor scale3, Tensor shift3, Tensor w3, int flags, int threads, str core)";
    m.def(("residual_forward(" + unit + " -> Tensor").c_str());
    m.def(("residual_forward_(Tensor(a!) y, " + unit + " -> ()").c_str());
}

#define EQC_IMPLEMENT(m)                                         \
    m.impl("mask_blocks", TORCH_BOX(&mask_blocks));              \
    m.impl("mask_pixels", TORCH_BOX(&mask_pixels));              \
    m.impl("block_gather", TORCH_BOX(&block_gather));            \
    m.impl("block_scatter", TORCH_BOX(&block_scatter));          \
    m.impl("block_scatter_", TORCH_BOX(&block_scatter_));        \
    m.impl("block_pixels", TORCH_BOX(&block_pixels));            \
    m.impl("site_forward", TORCH_BOX(&site_forward));            \
    m.impl("site_forward_", TORCH_BOX(&site_forward_));          \
    m.impl("site_backward", TORCH_BOX(&site_backward));          \
    m.impl("site_outputs", TORCH_BOX(&site_outputs));            \
    m.impl("site_table", TORCH_BOX(&site_table));                \
    m.impl("residual_forward", TORCH_BOX(&residual_forward));    \
    m.impl("residual_forward_", TORCH_BOX(&residual_forward_));

STABLE_TORCH_LIBRARY_IMPL(eqconv, CPU, m) { EQC_IMPLEMENT(m) }

STABLE_TORCH_LIBRARY_IMPL(eqconv, CUDA, m) { EQC_IMPLEMENT(m) }
