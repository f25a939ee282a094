// Every operation on sparse blocks and sites, on shapes that end in the middle of words, tiles and registers.
#include "block_sparse/block_sparse.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <thread>

#include "operations.h"

namespace {

// What an operation leaves alone keeps these bytes, which are no remarkable number.
constexpr unsigned char kept = 0x3c;
// So many entries of a list do not count, and there is no memory for what they would say.
constexpr int64_t spare = 3;

const Operation<eqc_mask> mask_blocks{"mask_blocks",
                                      {eqc_mask_blocks_f32_workspace, eqc_mask_blocks_f64_workspace},
                                      {eqc_mask_blocks_f32, eqc_mask_blocks_f64}};
const Operation<eqc_mask> mask_pixels{"mask_pixels",
                                      {eqc_mask_pixels_f32_workspace, eqc_mask_pixels_f64_workspace},
                                      {eqc_mask_pixels_f32, eqc_mask_pixels_f64}};
const Operation<eqc_blocks> block_gather{"block_gather",
                                         {eqc_block_gather_f32_workspace, eqc_block_gather_f64_workspace},
                                         {eqc_block_gather_f32, eqc_block_gather_f64}};
const Operation<eqc_blocks> block_scatter{"block_scatter",
                                          {eqc_block_scatter_f32_workspace, eqc_block_scatter_f64_workspace},
                                          {eqc_block_scatter_f32, eqc_block_scatter_f64}};
const Operation<eqc_blocks> block_pixels{"block_pixels",
                                         {eqc_block_pixels_f32_workspace, eqc_block_pixels_f64_workspace},
                                         {eqc_block_pixels_f32, eqc_block_pixels_f64}};
const Operation<eqc_sites> site_forward{"site_forward",
                                        {eqc_site_forward_f32_workspace, eqc_site_forward_f64_workspace},
                                        {eqc_site_forward_f32, eqc_site_forward_f64}};
const Operation<eqc_sites> site_backward{"site_backward",
                                         {eqc_site_backward_f32_workspace, eqc_site_backward_f64_workspace},
                                         {eqc_site_backward_f32, eqc_site_backward_f64}};
const Operation<eqc_neighbours> site_outputs{"site_outputs",
                                             {eqc_site_outputs_f32_workspace, eqc_site_outputs_f64_workspace},
                                             {eqc_site_outputs_f32, eqc_site_outputs_f64}};
const Operation<eqc_neighbours> site_table{"site_table",
                                           {eqc_site_table_f32_workspace, eqc_site_table_f64_workspace},
                                           {eqc_site_table_f32, eqc_site_table_f64}};
const Operation<eqc_residual> residual_forward{"residual_forward",
                                               {eqc_residual_forward_f32_workspace, eqc_residual_forward_f64_workspace},
                                               {eqc_residual_forward_f32, eqc_residual_forward_f64}};

struct Image {
    int64_t images, height, width;
    int64_t pixels() const { return images * height * width; }
};

struct Windows {
    int64_t window[2], stride[2], offset[2], grid[2];
    int64_t cells(const Image& image) const { return image.images * grid[0] * grid[1]; }
};

// Windows overlap, leave gaps, are wider than a word of bits and larger than the image, and lie outside.
const std::vector<Windows> window_cases = {
    {{3, 3}, {1, 1}, {-1, -1}, {5, 131}},   {{4, 5}, {2, 3}, {-3, -2}, {4, 9}}, {{2, 3}, {5, 7}, {1, 2}, {3, 20}},
    {{2, 70}, {1, 1}, {0, -35}, {6, 67}},   {{40, 150}, {3, 11}, {-9, -30}, {2, 5}},
    {{2, 2}, {2, 2}, {100, -100}, {2, 61}},
};
const std::vector<Image> images = {{2, 5, 131}, {1, 9, 64}, {3, 1, 1}, {1, 7, 17}, {0, 4, 4}, {2, 0, 3}, {1, 3, 0}};

template <class Arguments>
void set_windows(Arguments& a, const Image& image, const Windows& windows) {
    a.images = image.images;
    a.height = image.height;
    a.width = image.width;
    a.window_height = windows.window[0];
    a.window_width = windows.window[1];
    a.stride_height = windows.stride[0];
    a.stride_width = windows.stride[1];
    a.offset_height = windows.offset[0];
    a.offset_width = windows.offset[1];
}

// Zeros and ones; one in `density` hundredths.
std::vector<double> mask_of(const Image& image, int density) {
    Numbers numbers(static_cast<uint64_t>(density));
    std::vector<double> made;
    for (int64_t k = 0; k < image.pixels(); ++k) made.push_back(numbers.below(100) < density);
    return made;
}

template <class T>
class Masks {
   public:
    Masks(Memory::Kind kind, const Image& image, const Windows& windows, int density, int flags)
        : kind_(kind),
          mask_(kind, "masks.mask", mask_of(image, density)),
          bytes_(kind, "masks.bytes", mask_of(image, density)),
          triples_(kind, "masks.triples", 3 * windows.cells(image)),
          places_(kind, "masks.places", windows.cells(image)),
          count_(kind, "masks.count", 1) {
        set_windows(a_, image, windows);
        a_.grid_height = windows.grid[0];
        a_.grid_width = windows.grid[1];
        a_.tolerance = flags & EQC_BS_AVERAGE ? 0.02 : 0.5;
        a_.flags = flags;
        a_.count = count_.data();
    }
    static const char* name() { return "masks"; }
    Bytes results(int threads, unsigned char junk) {
        Bytes all;
        a_.threads = threads;
        for (bool as_bytes : {false, true}) {
            a_.mask = as_bytes ? nullptr : mask_.data();
            a_.bytes = as_bytes ? bytes_.data() : nullptr;
            list(mask_blocks, triples_, junk, all);
            list(mask_pixels, places_, junk, all);
        }
        return all;
    }

   private:
    void list(const Operation<eqc_mask>& operation, Array<int32_t>& index, unsigned char junk, Bytes& all) {
        index.spoil(kept);
        count_.spoil(junk);
        a_.index = index.data();
        call<T>(operation, a_, kind_, junk);
        index.append_to(all);
        count_.append_to(all);
    }

    eqc_mask a_{};
    Memory::Kind kind_;
    Array<T> mask_;
    Array<uint8_t> bytes_;
    Array<int32_t> triples_, places_, count_;
};

void masks(int instructions) {
    for (const Image& image : images)
        for (const Windows& windows : window_cases)
            for (int flags : {0, EQC_BS_AVERAGE | EQC_BS_FIRST})
                both_types<Masks>(image, windows, flags ? 100 : 20, flags | instructions);
    both_types<Masks>(images[0], window_cases[0], 0, EQC_BS_FIRST | instructions);
    both_types<Masks>(images[0], window_cases[0], 100, instructions);
    both_types<Masks>(Image{1, 300, 301}, Windows{{1, 1}, {1, 1}, {0, 0}, {300, 301}}, 30, instructions);
}

// Cells of a grid in no order, some of them twice.
std::vector<int64_t> cells_of(const Image& image, const Windows& windows, int64_t rows) {
    Numbers numbers(static_cast<uint64_t>(rows));
    std::vector<int64_t> made;
    for (int64_t r = 0; r < rows && image.images > 0; ++r)
        for (int64_t end : {image.images, windows.grid[0], windows.grid[1]}) made.push_back(numbers.below(end));
    return made;
}

template <class T>
class Blocks {
   public:
    Blocks(Memory::Kind kind, const Image& image, const Windows& windows, int64_t channels, int64_t rows, int flags)
        : Blocks(kind, image, windows, channels, flags, cells_of(image, windows, rows)) {}
    static const char* name() { return "blocks"; }
    Bytes results(int threads, unsigned char junk) {
        Bytes numbers, lists;
        a_.threads = threads;
        for (int owned : {0, int(EQC_BS_OWNED)}) {
            eqc_blocks a = with(owned);
            a.x = x_.data();
            a.blocks = blocks_.data();
            blocks_.spoil(junk);
            call<T>(block_gather, a, kind_, junk);
            blocks_.append_to(numbers);
        }
        for (int add : {0, int(EQC_BS_ADD)}) {
            scatter(with(add), blocks_in_.data(), x_.data(), junk, numbers);
            scatter(with(add), blocks_in_.data(), y_.data(), kept, numbers);
            scatter(with(add), blocks_in_.data(), nullptr, junk, numbers);
            scatter(with(add), nullptr, x_.data(), junk, numbers);
        }
        require_finite<T>(numbers, name());
        eqc_blocks a = with(0);
        a.pixels = pixels_.data();
        a.pixel_count = pixel_count_.data();
        pixels_.spoil(kept);
        call<T>(block_pixels, a, kind_, junk);
        pixels_.append_to(lists);
        pixel_count_.append_to(lists);
        numbers.insert(numbers.end(), lists.begin(), lists.end());
        return numbers;
    }

   private:
    Blocks(Memory::Kind kind, const Image& image, const Windows& windows, int64_t channels, int flags,
           const std::vector<int64_t>& index)
        : kind_(kind),
          block_(windows.window[0] * windows.window[1] * channels),
          index_(kind, "blocks.index", index),
          count_(kind, "blocks.count", std::vector<int64_t>{int64_t(index.size()) / 3}),
          x_(kind, "blocks.x", Numbers(1).real(image.pixels() * channels, 1)),
          y_(kind, "blocks.y", image.pixels() * channels),
          blocks_(kind, "blocks.blocks", (count_.data()[0] + spare) * block_),
          blocks_in_(kind, "blocks.blocks_in", Numbers(2).real(count_.data()[0] * block_, 1)),
          pixels_(kind, "blocks.pixels", image.pixels()),
          pixel_count_(kind, "blocks.pixel_count", 1) {
        set_windows(a_, image, windows);
        a_.channels = channels;
        a_.rows = count_.data()[0] + spare;
        a_.flags = flags;
        a_.index = index_.data();
        a_.count = count_.data();
    }
    eqc_blocks with(int flags) const {
        eqc_blocks a = a_;
        a.flags |= flags;
        return a;
    }
    void scatter(eqc_blocks a, const T* blocks, const T* base, unsigned char junk, Bytes& all) {
        a.blocks_in = blocks;
        a.base = base;
        a.y = y_.data();
        y_.spoil(junk);
        call<T>(block_scatter, a, kind_, junk);
        y_.append_to(all);
    }

    eqc_blocks a_{};
    Memory::Kind kind_;
    int64_t block_;
    Array<int32_t> index_, count_;
    Array<T> x_, y_, blocks_, blocks_in_;
    Array<int32_t> pixels_, pixel_count_;
};

void blocks(int instructions) {
    for (int turned : {0, int(EQC_BS_TRANSPOSE)}) {
        for (const Image& image : images)
            for (const Windows& windows : window_cases)
                both_types<Blocks>(image, windows, 3, windows.window[0] > 9 ? 2 : 19, turned | instructions);
        for (int64_t channels : {0, 1, 8, 17, 33, 70})
            both_types<Blocks>(Image{2, 11, 9}, window_cases[1], channels, 17, turned | instructions);
    }
    both_types<Blocks>(Image{2, 90, 40}, Windows{{5, 4}, {2, 2}, {-2, -1}, {44, 20}}, 5, 130, instructions);
    both_types<Blocks>(images[0], window_cases[0], 5, 0, instructions);
}

struct Kernel {
    int64_t size[2], stride[2], pad[2], dilation[2];
    int64_t taps() const { return size[0] * size[1]; }
    int64_t out(int axis, int64_t in) const {
        const int64_t left = in + 2 * pad[axis] - (size[axis] - 1) * dilation[axis] - 1;
        return left < 0 ? 0 : left / stride[axis] + 1;
    }
};

const Kernel same{{3, 3}, {1, 1}, {1, 1}, {1, 1}};
const std::vector<Kernel> kernel_cases = {
    same, {{1, 1}, {1, 1}, {0, 0}, {1, 1}}, {{5, 2}, {2, 3}, {4, 1}, {1, 2}}, {{2, 2}, {3, 4}, {0, 0}, {1, 1}}};

// Beside whole registers of 4, 8, 16 and 32 numbers, and what the matrix unit takes.
const std::vector<std::pair<int64_t, int64_t>> widths = {{3, 5},   {1, 1},   {8, 16}, {33, 17}, {17, 34},  {24, 7},
                                                         {64, 66}, {70, 97}, {5, 70}, {130, 8}, {500, 40}, {0, 3},
                                                         {3, 0}};

enum Wanted { everything, of_x, of_w, of_bias, nothing, wanted_count };

// What the sites are: neighbours in an image or, where there is a table, any rows.
struct Form {
    Image in{0, 0, 0}, out{0, 0, 0};
    Kernel kernel{{0, 0}, {0, 0}, {0, 0}, {0, 0}};
    int64_t in_rows, out_rows, taps;
    std::vector<int64_t> site, table, inverse;
    int64_t used() const { return table.empty() ? int64_t(site.size()) : int64_t(table.size()) / taps; }
};

Form in_image(const Image& image, const Kernel& kernel, int density) {
    Form made;
    made.in = image;
    made.out = {image.images, kernel.out(0, image.height), kernel.out(1, image.width)};
    made.kernel = kernel;
    made.in_rows = image.pixels();
    made.out_rows = made.out.pixels();
    made.taps = kernel.taps();
    const std::vector<double> listed = mask_of(made.out, density);
    for (int64_t k = 0; k < made.out_rows; ++k)
        if (listed[size_t(k)] > 0) made.site.push_back(k);
    return made;
}

// Tap t of entry i reads row i + t modulo the rows, where it reads one.
Form with_table(int64_t entries, int64_t rows, int64_t taps, int density) {
    Form made;
    Numbers numbers(static_cast<uint64_t>(entries));
    made.in_rows = rows;
    made.out_rows = entries + spare;
    made.taps = taps;
    made.inverse.assign(size_t(rows * taps), -1);
    for (int64_t i = 0; i < entries; ++i)
        for (int64_t t = 0; t < taps; ++t) {
            const int64_t row = numbers.below(100) < density ? (i + t) % rows : -1;
            made.table.push_back(row);
            if (row >= 0) made.inverse[size_t(row * taps + t)] = i;
        }
    return made;
}

template <class T>
class Sites {
   public:
    Sites(Memory::Kind kind, const Form& form, std::pair<int64_t, int64_t> width, int flags, Wanted wanted = everything)
        : kind_(kind),
          wanted_(wanted),
          site_(kind, "sites.site", form.site),
          table_(kind, "sites.table", form.table),
          inverse_(kind, "sites.inverse", form.inverse),
          count_(kind, "sites.count", std::vector<int64_t>{form.used()}),
          x_(kind, "sites.x", Numbers(1).real(form.in_rows * width.first, 1)),
          w_(kind, "sites.w", Numbers(2).real(form.taps * width.first * width.second, 1)),
          bias_(kind, "sites.bias", Numbers(3).real(width.second, 1)),
          dy_(kind, "sites.dy", Numbers(4).real(form.out_rows * width.second, 1)),
          y_(kind, "sites.y", form.out_rows * width.second),
          dx_(kind, "sites.dx", form.in_rows * width.first),
          dw_(kind, "sites.dw", form.taps * width.first * width.second),
          db_(kind, "sites.db", width.second) {
        const bool tabled = !form.table.empty();
        a_.sites = std::min(form.out_rows, form.used() + spare);
        a_.taps = form.taps;
        a_.channels = width.first;
        a_.filters = width.second;
        a_.in_rows = form.in_rows;
        a_.out_rows = form.out_rows;
        a_.images = form.in.images;
        a_.height = form.in.height;
        a_.width = form.in.width;
        a_.out_height = form.out.height;
        a_.out_width = form.out.width;
        a_.kernel_height = form.kernel.size[0];
        a_.kernel_width = form.kernel.size[1];
        a_.stride_height = form.kernel.stride[0];
        a_.stride_width = form.kernel.stride[1];
        a_.pad_height = form.kernel.pad[0];
        a_.pad_width = form.kernel.pad[1];
        a_.dilation_height = form.kernel.dilation[0];
        a_.dilation_width = form.kernel.dilation[1];
        a_.flags = flags;
        a_.site = tabled ? nullptr : site_.data();
        a_.table = tabled ? table_.data() : nullptr;
        a_.count = count_.data();
        a_.x = x_.data();
        a_.w = w_.data();
        a_.y = y_.data();
    }
    static const char* name() { return "sites"; }
    Bytes results(int threads, unsigned char junk) {
        Bytes all;
        a_.threads = threads;
        y_.spoil(kept);
        eqc_sites a = a_;
        a.bias = bias_.data();
        call<T>(site_forward, a, kind_, junk);
        y_.append_to(all);
        backward(nullptr, junk, all);
        if (a_.table) backward(inverse_.data(), junk, all);
        require_finite<T>(all, name());
        return all;
    }

   private:
    void backward(const int32_t* inverse, unsigned char junk, Bytes& all) {
        eqc_sites a = a_;
        const auto output = [&](Array<T>& array, Wanted one) -> void* {
            array.spoil(junk);
            return wanted_ == everything || wanted_ == one ? array.data() : nullptr;
        };
        a.inverse = inverse;
        a.dy = dy_.data();
        a.dx = output(dx_, of_x);
        a.dw = output(dw_, of_w);
        a.db = output(db_, of_bias);
        if (!(a.flags & EQC_BS_RELU)) a.y = nullptr;
        call<T>(site_backward, a, kind_, junk);
        if (a.dx) dx_.append_to(all);
        if (a.dw) dw_.append_to(all);
        if (a.db) db_.append_to(all);
    }

    eqc_sites a_{};
    Memory::Kind kind_;
    Wanted wanted_;
    Array<int32_t> site_, table_, inverse_, count_;
    Array<T> x_, w_, bias_, dy_, y_, dx_, dw_, db_;
};

void sites(int instructions) {
    const Image image{2, 11, 13};
    for (const Kernel& kernel : kernel_cases)
        for (int density : {0, 30, 100})
            both_types<Sites>(in_image(image, kernel, density), widths[0], instructions | EQC_BS_RELU);
    for (const auto& width : widths) {
        both_types<Sites>(in_image({1, 7, 9}, same, 60), width, instructions);
        both_types<Sites>(with_table(53, 61, 4, 40), width, instructions | EQC_BS_RELU);
    }
    for (int wanted = 0; wanted < wanted_count; ++wanted) {
        both_types<Sites>(in_image(image, same, 30), widths[3], instructions, Wanted(wanted));
        both_types<Sites>(with_table(37, 20, 3, 90), widths[3], instructions, Wanted(wanted));
    }
    both_types<Sites>(in_image({1, 45, 41}, same, 50), widths[0], instructions | EQC_BS_RELU);
    both_types<Sites>(with_table(900, 700, 27, 20), widths[0], instructions);
    both_types<Sites>(with_table(1, 1, 1, 100), widths[1], instructions);
    both_types<Sites>(in_image({1, 1, 1}, same, 100), widths[4], instructions);
    both_types<Sites>(in_image({0, 4, 4}, same, 100), widths[4], instructions);
}

struct Neighbourhood {
    const char* name;
    int64_t batch;
    std::vector<int64_t> extent, out, kernel, stride, pad, dilation;
    int64_t rows;
    int64_t axes() const { return int64_t(extent.size()); }
    int64_t taps() const {
        int64_t product = 1;
        for (int64_t size : kernel) product *= size;
        return product;
    }
};

// With a place in memory for every cell, and with more cells than that.
const std::vector<Neighbourhood> neighbourhoods = {
    {"one axis", 2, {50}, {17}, {4}, {3}, {2}, {1}, 31},
    {"two axes", 3, {13, 70}, {13, 70}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 400},
    {"strides", 2, {13, 9}, {7, 5}, {3, 5}, {2, 2}, {1, 2}, {1, 1}, 60},
    {"dilation", 1, {13, 9}, {13, 9}, {3, 2}, {1, 1}, {2, 2}, {2, 3}, 50},
    {"three axes", 2, {7, 8, 9}, {7, 8, 9}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, 200},
    {"four axes", 1, {4, 5, 3, 6}, {2, 5, 3, 2}, {2, 3, 1, 3}, {2, 1, 1, 3}, {0, 1, 0, 2}, {1, 1, 1, 1}, 77},
    {"large", 2, {1 << 29, 1 << 29}, {1 << 28, 1 << 28}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 70},
    {"large and wide", 1, {1 << 20, 1 << 20, 1 << 20}, {1 << 20, 1 << 20, 1 << 20}, {1, 3, 19}, {1, 1, 1}, {0, 1, 9},
     {1, 1, 1}, 40},
    {"no row", 2, {13, 9}, {13, 9}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0},
    {"no cell", 2, {13, 0}, {13, 0}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0},
};

// Different coordinates in no order, close together: every second cell of a box at a corner.
std::vector<int64_t> coordinates_of(const Neighbourhood& n) {
    std::vector<int64_t> made;
    const bool at_end = n.extent[0] > 1000;
    for (int64_t row = 0; row < n.rows; ++row) {
        int64_t cell = 2 * row % n.rows + (n.rows % 2 == 0 && 2 * row >= n.rows);
        std::vector<int64_t> place;
        for (int64_t d = n.axes(); d-- > 0;) {
            const int64_t side = std::min<int64_t>(n.extent[size_t(d)], 30);
            place.push_back(at_end ? n.extent[size_t(d)] - 1 - cell % side : cell % side);
            cell /= side;
        }
        REQUIRE(cell < n.batch, "%s", n.name);
        made.push_back(cell);
        made.insert(made.end(), place.rbegin(), place.rend());
    }
    return made;
}

template <class T>
class Neighbours {
   public:
    Neighbours(Memory::Kind kind, const Neighbourhood& n, int flags)
        : Neighbours(kind, n, flags, coordinates_of(n), n.rows * n.taps()) {
        // So that the arrays are no larger than the outputs.
        Neighbours found(kind, n, flags, coordinates_of(n), n.rows * n.taps());
        found.results(1, 0);
        made_ = std::make_unique<Array<int32_t>>(kind, "neighbours.made", found.made_count_.data()[0] * (1 + n.axes()));
        table_ = std::make_unique<Array<int32_t>>(kind, "neighbours.table", found.made_count_.data()[0] * n.taps());
        a_.out_rows = found.made_count_.data()[0];
    }
    const char* name() const { return name_; }
    Bytes results(int threads, unsigned char junk) {
        Bytes all;
        eqc_neighbours a = a_;
        a.threads = threads;
        a.made_coords = made_->data();
        a.made_count = made_count_.data();
        made_->spoil(kept);
        call<T>(site_outputs, a, kind_, junk);
        made_->append_to(all);
        made_count_.append_to(all);
        a.out_coords = made_->data();
        a.out_count = made_count_.data();
        a.table = table_->data();
        table_->spoil(junk);
        call<T>(site_table, a, kind_, junk);
        table_->append_to(all);
        // The sites themselves as outputs.
        a.out_rows = count_.data()[0];
        a.out_coords = coords_.data();
        a.out_count = nullptr;
        a.table = own_table_.data();
        own_table_.spoil(junk);
        call<T>(site_table, a, kind_, junk);
        own_table_.append_to(all);
        return all;
    }

   private:
    Neighbours(Memory::Kind kind, const Neighbourhood& n, int flags, const std::vector<int64_t>& coords, int64_t most)
        : kind_(kind),
          name_(n.name),
          coords_(kind, "neighbours.coords", coords),
          count_(kind, "neighbours.count", std::vector<int64_t>{n.rows}),
          made_count_(kind, "neighbours.made_count", 1),
          own_table_(kind, "neighbours.own_table", n.rows * n.taps()),
          made_(std::make_unique<Array<int32_t>>(kind, "neighbours.most", most * (1 + n.axes()))),
          table_(std::make_unique<Array<int32_t>>(kind, "neighbours.most", most * n.taps())) {
        const auto set = [](int64_t* to, const std::vector<int64_t>& sizes) { std::copy(sizes.begin(), sizes.end(), to); };
        a_.axes = n.axes();
        a_.batch = n.batch;
        a_.rows = n.rows + spare;
        a_.out_rows = most;
        set(&a_.extent_0, n.extent);
        set(&a_.out_extent_0, n.out);
        set(&a_.kernel_0, n.kernel);
        set(&a_.stride_0, n.stride);
        set(&a_.pad_0, n.pad);
        set(&a_.dilation_0, n.dilation);
        a_.flags = flags;
        a_.coords = coords_.data();
        a_.count = count_.data();
    }

    eqc_neighbours a_{};
    Memory::Kind kind_;
    const char* name_;
    Array<int32_t> coords_, count_, made_count_, own_table_;
    std::unique_ptr<Array<int32_t>> made_, table_;
};

void neighbours(int instructions) {
    for (const Neighbourhood& n : neighbourhoods) both_types<Neighbours>(n, instructions);
    const Neighbourhood many{"many rows", 9, {30, 30}, {15, 15}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 6000};
    both_types<Neighbours>(many, instructions);
}

template <class T>
class Residual {
   public:
    Residual(Memory::Kind kind, const Image& image, int64_t channels, int64_t bottleneck, int density, int flags,
             bool activated)
        : Residual(kind, in_image(image, same, density), channels, bottleneck, flags, activated) {}
    static const char* name() { return "residual"; }
    Bytes results(int threads, unsigned char junk) {
        Bytes all;
        a_.threads = threads;
        y_.spoil(kept);
        call<T>(residual_forward, a_, kind_, junk);
        y_.append_to(all);
        require_finite<T>(all, name());
        return all;
    }

   private:
    Residual(Memory::Kind kind, const Form& form, int64_t c, int64_t m, int flags, bool activated)
        : kind_(kind),
          site_(kind, "residual.site", form.site),
          count_(kind, "residual.count", std::vector<int64_t>{form.used()}),
          x_(kind, "residual.x", Numbers(1).real(form.in_rows * c, 1)),
          scale1_(kind, "residual.scale1", Numbers(2).real(c, 1)),
          shift1_(kind, "residual.shift1", Numbers(3).real(c, 1)),
          w1_(kind, "residual.w1", Numbers(4).real(c * m, 1)),
          scale2_(kind, "residual.scale2", Numbers(5).real(m, 1)),
          shift2_(kind, "residual.shift2", Numbers(6).real(m, 1)),
          w2_(kind, "residual.w2", Numbers(7).real(9 * m * m, 1)),
          scale3_(kind, "residual.scale3", Numbers(8).real(m, 1)),
          shift3_(kind, "residual.shift3", Numbers(9).real(m, 1)),
          w3_(kind, "residual.w3", Numbers(10).real(m * c, 1)),
          y_(kind, "residual.y", form.in_rows * c) {
        a_.images = form.in.images;
        a_.height = form.in.height;
        a_.width = form.in.width;
        a_.channels = c;
        a_.bottleneck = m;
        a_.sites = std::min(form.in_rows, form.used() + spare);
        a_.flags = flags;
        a_.site = site_.data();
        a_.count = count_.data();
        a_.x = x_.data();
        a_.scale1 = activated ? scale1_.data() : nullptr;
        a_.shift1 = activated ? shift1_.data() : nullptr;
        a_.w1 = w1_.data();
        a_.scale2 = scale2_.data();
        a_.shift2 = shift2_.data();
        a_.w2 = w2_.data();
        a_.scale3 = scale3_.data();
        a_.shift3 = shift3_.data();
        a_.w3 = w3_.data();
        a_.y = y_.data();
    }

    eqc_residual a_{};
    Memory::Kind kind_;
    Array<int32_t> site_, count_;
    Array<T> x_, scale1_, shift1_, w1_, scale2_, shift2_, w2_, scale3_, shift3_, w3_, y_;
};

void residual(int instructions) {
    for (const auto& width : widths)
        if (width.first < 500) both_types<Residual>(Image{2, 5, 7}, width.first, width.second, 40, instructions, true);
    for (const Image& image : {Image{2, 9, 11}, Image{1, 1, 1}, Image{1, 1, 40}, Image{0, 3, 3}, Image{1, 30, 31}})
        for (int density : {0, 10, 100})
            for (bool activated : {false, true})
                both_types<Residual>(image, 9, 4, density, instructions | (activated ? EQC_BS_ORIGINAL : 0), activated);
}

// Two callers at a time share the threads, and neither sees the other.
void concurrent() {
    const Form form = with_table(300, 250, 9, 50);
    const Bytes expected = Sites<float>(Memory::heap, form, widths[3], 0).results(1, 0);
    const auto call_some = [&] {
        Sites<float> problem(Memory::heap, form, widths[3], 0);
        for (int k = 0; k < 5; ++k) REQUIRE(problem.results(3, 0xff) == expected, "call %d", k);
    };
    std::thread first(call_some), second(call_some);
    first.join();
    second.join();
}

void extremes(int instructions) {
    constexpr size_t of_mask = offsetof(eqc_mask, tolerance) / sizeof(int64_t);
    constexpr size_t of_blocks = offsetof(eqc_blocks, flags) / sizeof(int64_t);
    constexpr size_t of_sites = offsetof(eqc_sites, flags) / sizeof(int64_t);
    constexpr size_t of_neighbours = offsetof(eqc_neighbours, flags) / sizeof(int64_t);
    constexpr size_t of_residual = offsetof(eqc_residual, flags) / sizeof(int64_t);
    for (int flags : {0, int(EQC_BS_AVERAGE)}) extreme_sizes(mask_blocks, of_mask, instructions | flags);
    extreme_sizes(mask_pixels, of_mask, instructions);
    extreme_sizes(block_gather, of_blocks, instructions | EQC_BS_OWNED);
    extreme_sizes(block_scatter, of_blocks, instructions);
    extreme_sizes(block_pixels, of_blocks, instructions);
    extreme_sizes(site_forward, of_sites, instructions);
    extreme_sizes(site_backward, of_sites, instructions | EQC_BS_RELU);
    extreme_sizes(site_outputs, of_neighbours, instructions);
    extreme_sizes(site_table, of_neighbours, instructions);
    extreme_sizes(residual_forward, of_residual, instructions);
}

}  // namespace

// block_sparse [PART.ARRAY heap|page]: with a planted fault, which is in this part.
int main(int count, char** words) {
    plant(count, words);
    for (int instructions : {0, int(EQC_AVX512), int(EQC_AVX2), int(EQC_PORTABLE)}) {
        if (runs("masks")) masks(instructions);
        if (runs("blocks")) blocks(instructions);
        if (runs("sites")) sites(instructions);
        if (runs("neighbours")) neighbours(instructions);
        if (runs("residual")) residual(instructions);
        if (short_array.empty() && !races_only) extremes(instructions);
    }
    concurrent();
    std::printf("%lld calls\n", static_cast<long long>(calls.load()));
    return 0;
}
