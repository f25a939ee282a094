// Both directions of the expansion of steerable kernels, on rows of pixels, blocks and groups of pairs that end in the
// middle of registers.
#include "steerable/steerable.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <thread>

#include "operations.h"

namespace {

const Operation<eqc_expansion> expand_forward{"expand_forward",
                                              {eqc_expand_forward_f32_workspace, eqc_expand_forward_f64_workspace},
                                              {eqc_expand_forward_f32, eqc_expand_forward_f64}};
const Operation<eqc_expansion> expand_backward{"expand_backward",
                                               {eqc_expand_backward_f32_workspace, eqc_expand_backward_f64_workspace},
                                               {eqc_expand_backward_f32, eqc_expand_backward_f64}};

// How many images each row of a type has.
enum Images { one, some, all };

struct Form {
    const char* name;
    std::vector<int64_t> out_sizes, in_sizes; // of the fields
    int64_t pixels, harmonics, permutations;
    Images images;
    int64_t gap; // every so many pairs one has no type; 0: each has one
};

std::vector<int64_t> repeated(const std::vector<int64_t>& sizes, int times) {
    std::vector<int64_t> made;
    for (int k = 0; k < times; ++k) made.insert(made.end(), sizes.begin(), sizes.end());
    return made;
}

// The arrays of numbers as the header describes them. Each pair of sizes that are not 0 is a type.
struct Lists {
    std::vector<int64_t> pairs, out_starts{0}, in_starts{0}, records, lists, permutation;
    int64_t types = 0, values = 0, weights = 0;

    Lists(const Form& form, bool direct) : numbers_(uint64_t(form.pixels * 131 + form.harmonics)) {
        for (int64_t size : form.out_sizes) out_starts.push_back(out_starts.back() + size);
        for (int64_t size : form.in_sizes) in_starts.push_back(in_starts.back() + size);
        const std::vector<int64_t> out = distinct(form.out_sizes), in = distinct(form.in_sizes);
        for (int64_t o : out)
            for (int64_t i : in) direct ? add_directly(o, i, form.pixels) : add_by_harmonics(o, i, form);
        for (size_t at = EQC_ST_LISTS; at < records.size(); at += EQC_ST_RECORD) records[at] += int64_t(records.size());
        for (int64_t n = 0; n < form.permutations && !direct; ++n) {
            std::vector<int64_t> order(static_cast<size_t>(form.pixels));
            std::iota(order.begin(), order.end(), 0);
            if (n > 0) shuffle(order);
            permutation.insert(permutation.end(), order.begin(), order.end());
        }
        // The first pair has the last weights.
        const size_t fields = form.in_sizes.size(), all = form.out_sizes.size() * fields;
        pairs.assign(2 * all, -1);
        for (size_t pair = all; pair-- > 0;) {
            const int64_t o = form.out_sizes[pair / fields], i = form.in_sizes[pair % fields];
            if (o == 0 || i == 0 || (form.gap > 0 && int64_t(pair) % form.gap == 0)) continue;
            const int64_t type = position(out, o) * int64_t(in.size()) + position(in, i);
            pairs[2 * pair] = type;
            pairs[2 * pair + 1] = weights;
            weights += records[size_t(type * EQC_ST_RECORD + EQC_ST_ELEMENTS)];
        }
    }

    std::vector<int64_t> table() const {
        std::vector<int64_t> made = records;
        made.insert(made.end(), lists.begin(), lists.end());
        return made;
    }

   private:
    static std::vector<int64_t> distinct(std::vector<int64_t> sizes) {
        std::sort(sizes.begin(), sizes.end());
        sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
        sizes.erase(std::remove(sizes.begin(), sizes.end(), 0), sizes.end());
        return sizes;
    }
    static int64_t position(const std::vector<int64_t>& sizes, int64_t size) {
        return std::lower_bound(sizes.begin(), sizes.end(), size) - sizes.begin();
    }
    void shuffle(std::vector<int64_t>& order) {
        for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[size_t(numbers_.below(int64_t(k)))]);
    }
    void add_directly(int64_t o, int64_t i, int64_t pixels) {
        const int64_t elements = numbers_.below(9);
        records.insert(records.end(), {o, i, elements, 0, 0, 0, 0, values});
        values += elements * o * i * pixels;
        ++types;
    }
    void add_by_harmonics(int64_t o, int64_t i, const Form& form) {
        const int64_t size = o * i, elements = 1 + numbers_.below(40), first_list = int64_t(lists.size());
        const int64_t rows = form.images == one ? size : form.images == all ? 1 : (size + 2) / 3;
        int64_t used = 0, slots = 0;
        for (int64_t k = 0; k < form.harmonics; ++k) {
            if (numbers_.below(5) == 0) continue;
            const int64_t count = numbers_.below(20);
            lists.insert(lists.end(), {k, count, slots});
            slots += count;
            ++used;
        }
        for (int64_t j = 0; j < slots; ++j) lists.push_back(numbers_.below(elements));
        // Where rows have some images, they have different numbers of them, and none.
        std::vector<int64_t> first{0};
        for (int64_t r = 1; r < rows; ++r) first.push_back(form.images == one ? r : numbers_.below(size + 1));
        std::sort(first.begin(), first.end());
        lists.insert(lists.end(), first.begin(), first.end());
        lists.push_back(size);
        std::vector<int64_t> places(static_cast<size_t>(size));
        std::iota(places.begin(), places.end(), 0);
        shuffle(places);
        for (int64_t place : places) {
            const int64_t sign = numbers_.below(2) == 0 ? -1 : 1;
            lists.insert(lists.end(), {place / i, place % i, sign, numbers_.below(form.permutations)});
        }
        records.insert(records.end(), {o, i, elements, rows, used, slots, first_list, values});
        values += slots * rows;
        ++types;
    }

    Numbers numbers_;
};

// The name of an array, in the part that it is of.
struct Name {
    std::string text;
    Name(bool direct, const char* array) : text(std::string(direct ? "directly." : "harmonics.") + array) {}
    operator const char*() const { return text.c_str(); }
};

template <class T>
class Expansion {
   public:
    Expansion(Memory::Kind kind, const Form& form, bool direct, int instructions)
        : Expansion(kind, form, direct, instructions, Lists(form, direct)) {}
    const char* name() const { return name_; }
    Bytes results(int threads, unsigned char junk) {
        Bytes all;
        a_.threads = threads;
        eqc_expansion a = a_;
        a.weights = weights_.data();
        a.filter = filter_.data();
        filter_.spoil(junk);
        call<T>(expand_forward, a, kind_, junk);
        filter_.append_to(all);
        a.weights = gradients_.data();
        a.filter = filter_in_.data();
        gradients_.spoil(junk);
        call<T>(expand_backward, a, kind_, junk);
        gradients_.append_to(all);
        require_finite<T>(all, name_);
        return all;
    }

   private:
    Expansion(Memory::Kind kind, const Form& form, bool direct, int instructions, const Lists& lists)
        : kind_(kind),
          name_(form.name),
          pairs_(kind, Name(direct, "pairs"), lists.pairs),
          out_starts_(kind, Name(direct, "out_starts"), lists.out_starts),
          in_starts_(kind, Name(direct, "in_starts"), lists.in_starts),
          table_(kind, Name(direct, "table"), lists.table()),
          permutation_(kind, Name(direct, "permutation"), lists.permutation),
          values_(kind, Name(direct, "values"), Numbers(1).real(lists.values, 1)),
          harmonic_(kind, Name(direct, "harmonic"), Numbers(2).real(direct ? 0 : form.harmonics * form.pixels, 1)),
          weights_(kind, Name(direct, "weights"), Numbers(3).real(lists.weights, 1)),
          gradients_(kind, Name(direct, "gradients"), lists.weights),
          filter_(kind, Name(direct, "filter"), lists.out_starts.back() * lists.in_starts.back() * form.pixels),
          filter_in_(kind, Name(direct, "filter_in"),
                     Numbers(4).real(lists.out_starts.back() * lists.in_starts.back() * form.pixels, 1)) {
        a_.out_fields = int64_t(form.out_sizes.size());
        a_.in_fields = int64_t(form.in_sizes.size());
        a_.out_channels = lists.out_starts.back();
        a_.in_channels = lists.in_starts.back();
        a_.pixels = form.pixels;
        a_.harmonics = direct ? 0 : form.harmonics;
        a_.types = lists.types;
        a_.permutations = direct ? 0 : form.permutations;
        a_.weights_size = lists.weights;
        a_.table_size = int64_t(lists.records.size() + lists.lists.size());
        a_.values_size = lists.values;
        a_.flags = instructions | (direct ? EQC_ST_DIRECT : 0);
        a_.pairs = pairs_.data();
        a_.out_starts = out_starts_.data();
        a_.in_starts = in_starts_.data();
        a_.table = table_.data();
        a_.permutation = direct ? nullptr : permutation_.data();
        a_.values = values_.data();
        a_.harmonic = direct ? nullptr : harmonic_.data();
    }

    eqc_expansion a_{};
    Memory::Kind kind_;
    const char* name_;
    Array<int32_t> pairs_, out_starts_, in_starts_, table_, permutation_;
    Array<T> values_, harmonic_, weights_, gradients_, filter_, filter_in_;
};

// Rows of less than a register, of whole ones, and of up to two, three and many, the last of which shares pixels.
const std::vector<int64_t> pixel_counts = {1, 4, 9, 16, 17, 25, 32, 33, 49, 121};

std::vector<Form> forms() {
    const std::vector<int64_t> out{2, 1, 2, 2, 1}, in{3, 1, 1, 3, 1, 3, 3, 1, 1};
    std::vector<Form> made;
    for (int64_t pixels : pixel_counts)
        for (Images images : {one, some, all}) {
            // Some groups are full, and the last block is one entry wide.
            made.push_back({"fields of two sizes", out, in, pixels, 11, 5, images, images == some ? 7 : 0});
            made.push_back({"wide blocks", {3, 1}, {17, 6}, pixels, 3, 2, images, 0});
        }
    for (int64_t pixels : {1, 9, 25, 49}) {
        made.push_back({"more harmonics than pixels", {5, 2}, {4, 7}, pixels, 46, 3, some, 3});
        made.push_back({"no harmonic", {2, 1}, {3}, pixels, 0, 2, some, 0});
        // More rows than are worth keeping.
        made.push_back({"many rows", {18, 2}, {17, 17, 17}, pixels, 11, 8, one, 0});
        made.push_back({"one pair", {1}, {1}, pixels, 4, 1, one, 0});
        made.push_back({"one out channel", {1}, repeated({1}, 37), pixels, 5, 4, one, 0});
        made.push_back({"empty fields", {0, 2, 0, 1, 0}, {3, 0, 0, 1}, pixels, 5, 4, some, 0});
        made.push_back({"no type", {2, 3}, {4, 1}, pixels, 5, 4, some, 1});
        made.push_back({"no out field", {}, {4, 1}, pixels, 5, 4, some, 0});
        made.push_back({"no in field", {2}, {}, pixels, 5, 4, some, 0});
    }
    made.push_back({"no field", {}, {}, 0, 0, 1, one, 0});
    made.push_back({"no pixel", {2, 1}, {3}, 0, 6, 2, some, 0});
    return made;
}

// Enough for four threads: fields of neighbouring groups lie side by side.
std::vector<Form> large_forms() {
    return {
        {"large, of one pixel", repeated({8, 5, 3}, 32), repeated({4, 7, 2}, 32), 1, 7, 1, some, 11},
        {"large, of short rows", repeated({5, 3}, 18), repeated({2, 7}, 18), 9, 11, 4, some, 0},
        {"large, of two registers", repeated({8, 2}, 9), repeated({8, 3}, 9), 25, 11, 8, all, 5},
        {"large, of long rows", repeated({4, 3}, 10), repeated({5, 6}, 6), 49, 18, 4, some, 9},
    };
}

void expansions(bool direct, int instructions) {
    if (!races_only)
        for (const Form& form : forms()) both_types<Expansion>(form, direct, instructions);
    for (const Form& form : large_forms()) both_types<Expansion>(form, direct, instructions);
}

// Two callers at a time share the threads, and neither sees the other.
void concurrent() {
    const Form form = large_forms()[1];
    const Bytes expected = Expansion<float>(Memory::heap, form, false, 0).results(1, 0);
    const auto call_some = [&] {
        Expansion<float> problem(Memory::heap, form, false, 0);
        for (int k = 0; k < 5; ++k) REQUIRE(problem.results(3, 0xff) == expected, "call %d", k);
    };
    std::thread first(call_some), second(call_some);
    first.join();
    second.join();
}

constexpr size_t sizes_count = offsetof(eqc_expansion, flags) / sizeof(int64_t);

// The only type is of large blocks, and two numbers of the sizes and of its record are of all kinds: the size of the
// workspace depends on nothing else.
void extreme_records(const Operation<eqc_expansion>& operation, int flags) {
    constexpr int64_t extremes[] = {-1, 0, 1, 5, 65536, 1 << 28, INT32_MAX, int64_t(1) << 40};
    int32_t record[EQC_ST_RECORD], nothing[1] = {};
    const int32_t usual[EQC_ST_RECORD] = {1 << 14, 1 << 14, 1, 0, 0, 0, EQC_ST_RECORD, 0};
    for (int type : {0, 1})
        for (size_t i = 0; i < sizes_count + EQC_ST_RECORD; ++i)
            for (size_t j = i; j < sizes_count + EQC_ST_RECORD; ++j)
                for (int64_t first : extremes)
                    for (int64_t second : extremes) {
                        eqc_expansion a{};
                        a.out_fields = a.in_fields = a.out_channels = a.in_channels = a.pixels = a.harmonics = 1;
                        a.types = a.permutations = 1;
                        a.weights_size = a.table_size = a.values_size = INT32_MAX;
                        std::copy_n(usual, +EQC_ST_RECORD, record);
                        auto* sizes = reinterpret_cast<int64_t*>(&a);
                        const auto set = [&](size_t at, int64_t value) {
                            if (at < sizes_count)
                                sizes[at] = value;
                            else
                                record[at - sizes_count] = int32_t(value);
                        };
                        set(i, first);
                        set(j, second);
                        // There is no other record.
                        a.types = std::min<int64_t>(a.types, 1);
                        a.flags = flags;
                        a.pairs = a.out_starts = a.in_starts = a.permutation = nothing;
                        a.table = record;
                        a.values = a.harmonic = a.weights = a.filter = nothing;
                        operation.workspace[type](&a);
                        REQUIRE(operation.run[type](&a, nullptr, nullptr) == EQC_BAD_ARGUMENT, "%s without workspace",
                                operation.name);
                    }
}

void extremes(int instructions) {
    for (const auto* operation : {&expand_forward, &expand_backward})
        for (int direct : {0, int(EQC_ST_DIRECT)}) {
            extreme_sizes(*operation, sizes_count, instructions | direct);
            extreme_records(*operation, instructions | direct);
        }
}

}  // namespace

// steerable [PART.ARRAY heap|page]: with a planted fault, which is in this part.
int main(int count, char** words) {
    plant(count, words);
    for (int instructions : {0, int(EQC_AVX2), int(EQC_PORTABLE)}) {
        if (runs("harmonics")) expansions(false, instructions);
        if (runs("directly")) expansions(true, instructions);
        if (short_array.empty() && !races_only) extremes(instructions);
    }
    concurrent();
    std::printf("%lld calls\n", static_cast<long long>(calls.load()));
    return 0;
}
