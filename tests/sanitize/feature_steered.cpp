// Every operation of feature-steered convolution, on patterns and shapes that end in the middle of tiles and registers.
#include "feature_steered/feature_steered.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "arrays.h"

namespace {

struct Shape {
    int64_t channels, outputs, matrices;
};

// Neighbours of each row, and how they are stored.
struct Pattern {
    const char* name;
    int64_t cols;
    std::vector<std::vector<int64_t>> neighbours;
    bool own_centre;     // rows have features of their own
    bool permuted;       // values are in an order of their own, some of them for edges that are not there
    int64_t chunk_rows;  // rows of a chunk
};

Pattern random_pattern(const char* name, int64_t rows, int64_t cols, int64_t degree, bool own, bool permuted) {
    Numbers numbers(uint64_t(rows * 31 + cols));
    Pattern made{name, cols, {}, own, permuted, 43};
    for (int64_t i = 0; i < rows; ++i) {
        // Some rows have no neighbour.
        made.neighbours.emplace_back(size_t(numbers.below(2 * degree + 1)));
        for (int64_t& j : made.neighbours.back()) j = numbers.below(cols);
    }
    return made;
}

Pattern star(int64_t leaves) {
    Pattern made{"star", leaves + 1, {{}}, false, false, 64};
    for (int64_t leaf = 1; leaf <= leaves; ++leaf) {
        made.neighbours[0].push_back(leaf);
        made.neighbours.push_back({0});
    }
    return made;
}

std::vector<Pattern> patterns() {
    return {
        random_pattern("random", 150, 150, 6, false, false),
        random_pattern("permuted", 75, 75, 4, false, true),
        random_pattern("fewer rows", 37, 90, 5, true, false),
        random_pattern("fewer columns", 90, 37, 5, true, true),
        {"duplicates", 3, {{1, 1, 1, 1, 1}, {2, 2, 0, 0}, {0, 0, 0}}, false, false, 2},
        {"one row", 5, {{4, 0, 4}}, true, false, 1},
        {"one column", 1, {{0}, {}, {0, 0}}, true, false, 3},
        {"no edge", 35, std::vector<std::vector<int64_t>>(35), false, false, 16},
        {"no edge is kept", 3, std::vector<std::vector<int64_t>>(3), false, true, 2},
        {"no row", 4, {}, true, false, 1},
        {"no vertex", 0, {}, false, false, 1},
    };
}

// Beside whole registers of 4, 8, 16 and 32 numbers, and beside blocks of 4 and 8 rows.
const std::vector<Shape> shapes = {{3, 5, 2},   {1, 1, 1},    {33, 17, 9}, {17, 34, 8},
                                   {8, 130, 3}, {64, 16, 13}, {0, 3, 2},   {3, 0, 2}};

enum Wanted { everything, of_columns, of_values, of_centres, of_weights, nothing, wanted_count };

std::vector<Memory::Kind> kinds = {Memory::heap, Memory::page};
std::atomic<int64_t> calls{0};

template <class T>
constexpr bool is_float = sizeof(T) == sizeof(float);

template <class T>
void forward(const eqc_feature_steered& a, Memory::Kind kind, unsigned char junk) {
    const auto run = is_float<T> ? eqc_feature_steered_forward_f32 : eqc_feature_steered_forward_f64;
    Workspace room(kind, is_float<T> ? eqc_feature_steered_forward_f32_workspace(&a)
                                     : eqc_feature_steered_forward_f64_workspace(&a),
                   junk);
    REQUIRE(run(&a, room.data(), nullptr) == EQC_OK, "flags %d", a.flags);
    ++calls;
}

template <class T>
void backward(const eqc_feature_steered& a, Memory::Kind kind, unsigned char junk) {
    const auto run = is_float<T> ? eqc_feature_steered_backward_f32 : eqc_feature_steered_backward_f64;
    Workspace room(kind, is_float<T> ? eqc_feature_steered_backward_f32_workspace(&a)
                                     : eqc_feature_steered_backward_f64_workspace(&a),
                   junk);
    REQUIRE(run(&a, room.data(), nullptr) == EQC_OK, "flags %d", a.flags);
    ++calls;
}

// The arrays of the pattern as the header describes them.
struct Lists {
    std::vector<int64_t> rowptr{0}, col, edge_of_slot, chunk_rows{0}, touched_start{0}, touched, local;
    int64_t given_edges;

    explicit Lists(const Pattern& pattern) {
        const int64_t rows = int64_t(pattern.neighbours.size());
        for (const auto& row : pattern.neighbours) {
            col.insert(col.end(), row.begin(), row.end());
            rowptr.push_back(int64_t(col.size()));
        }
        const int64_t edges = int64_t(col.size());
        given_edges = edges + (pattern.permuted ? 3 : 0);
        for (int64_t slot = 0; slot < edges; ++slot) edge_of_slot.push_back(given_edges - 1 - slot);
        while (chunk_rows.back() < rows) {
            const int64_t first = chunk_rows.back(), end = std::min(rows, first + pattern.chunk_rows);
            std::vector<int64_t> named(col.begin() + rowptr[size_t(first)], col.begin() + rowptr[size_t(end)]);
            for (int64_t row = first; row < end && rows == pattern.cols; ++row) named.push_back(row);
            std::sort(named.begin(), named.end());
            named.erase(std::unique(named.begin(), named.end()), named.end());
            for (int64_t slot = rowptr[size_t(first)]; slot < rowptr[size_t(end)]; ++slot)
                local.push_back(std::lower_bound(named.begin(), named.end(), col[size_t(slot)]) - named.begin());
            touched.insert(touched.end(), named.begin(), named.end());
            touched_start.push_back(int64_t(touched.size()));
            chunk_rows.push_back(end);
        }
    }
};

// One problem in memory.
template <class T>
class Problem {
   public:
    Problem(Memory::Kind kind, const Pattern& pattern, Shape shape, double logits)
        : Problem(kind, pattern, Lists(pattern), shape, logits, Numbers(1), int64_t(pattern.neighbours.size())) {}

    // The bytes of everything that forward and backward give.
    std::vector<unsigned char> results(int flags, int threads, Wanted wanted, unsigned char junk) {
        std::vector<unsigned char> all;
        a_.flags = flags;
        a_.threads = threads;
        // Forward gets what it needs and nothing else.
        eqc_feature_steered a = a_;
        a.touched_start = nullptr;
        a.touched = a.local = nullptr;
        a.dy = nullptr;
        y_.spoil(junk);
        forward<T>(a, kind_, junk);
        y_.append_to(all);
        a = a_;
        if (!(flags & EQC_FS_RELU)) a.y = nullptr;
        const bool every = wanted == everything;
        const auto output = [&](Array<T>& array, bool is_wanted) -> void* {
            array.spoil(junk);
            return is_wanted ? array.data() : nullptr;
        };
        a.dx = output(dx_, every || wanted == of_columns);
        a.dv = output(dv_, every || wanted == of_columns);
        a.dvalues = output(dvalues_, every || wanted == of_values);
        a.dcentre = output(dcentre_, own_centre_ && (every || wanted == of_centres));
        a.du = output(du_, every || wanted == of_centres);
        a.dc = output(dc_, every || wanted == of_centres);
        a.dw = output(dw_, every || wanted == of_weights);
        a.db = output(db_, every || wanted == of_weights);
        if (!a.dx && !a.dv) {
            a.touched_start = nullptr;
            a.touched = a.local = nullptr;
        }
        backward<T>(a, kind_, junk);
        if (a.dx) dx_.append_to(all), dv_.append_to(all);
        if (a.dvalues) dvalues_.append_to(all);
        if (a.dcentre) dcentre_.append_to(all);
        if (a.du) du_.append_to(all), dc_.append_to(all);
        if (a.dw) dw_.append_to(all), db_.append_to(all);
        for (size_t at = 0; at < all.size(); at += sizeof(T)) {
            T value;
            std::memcpy(&value, all.data() + at, sizeof value);
            REQUIRE(std::isfinite(value), "number %zu with flags %d", at / sizeof(T), flags);
        }
        return all;
    }

   private:
    Problem(Memory::Kind kind, const Pattern& pattern, const Lists& lists, Shape s, double logits, Numbers n,
            int64_t rows)
        : kind_(kind),
          own_centre_(pattern.own_centre),
          rowptr_(kind, "rowptr", lists.rowptr),
          chunk_rows_(kind, "chunk_rows", lists.chunk_rows),
          touched_start_(kind, "touched_start", lists.touched_start),
          edge_of_slot_(kind, "edge_of_slot", lists.edge_of_slot),
          col_(kind, "col", lists.col),
          touched_(kind, "touched", lists.touched),
          local_(kind, "local", lists.local),
          x_(kind, "x", n.real(pattern.cols * s.channels, 1)),
          centre_(kind, "centre", n.real(rows * s.channels, 1)),
          values_(kind, "values", n.real(lists.given_edges, 1)),
          u_(kind, "u", n.real(s.channels * s.matrices, logits)),
          v_(kind, "v", n.real(s.channels * s.matrices, logits)),
          c_(kind, "c", n.real(s.matrices, 1)),
          w_(kind, "w", n.real(s.matrices * s.channels * s.outputs, 1)),
          b_(kind, "b", n.real(s.outputs, 1)),
          dy_(kind, "dy", n.real(rows * s.outputs, 1)),
          y_(kind, "y", rows * s.outputs),
          dx_(kind, "dx", pattern.cols * s.channels),
          dcentre_(kind, "dcentre", rows * s.channels),
          dvalues_(kind, "dvalues", lists.given_edges),
          du_(kind, "du", s.channels * s.matrices),
          dv_(kind, "dv", s.channels * s.matrices),
          dc_(kind, "dc", s.matrices),
          dw_(kind, "dw", s.matrices * s.channels * s.outputs),
          db_(kind, "db", s.outputs) {
        a_.rows = rows;
        a_.cols = pattern.cols;
        a_.edges = int64_t(lists.col.size());
        a_.given_edges = lists.given_edges;
        a_.channels = s.channels;
        a_.outputs = s.outputs;
        a_.matrices = s.matrices;
        a_.chunks = int64_t(lists.chunk_rows.size()) - 1;
        a_.rowptr = rowptr_.data();
        a_.col = col_.data();
        a_.edge_of_slot = pattern.permuted ? edge_of_slot_.data() : nullptr;
        a_.chunk_rows = chunk_rows_.data();
        a_.touched_start = touched_start_.data();
        a_.touched = touched_.data();
        a_.local = local_.data();
        a_.x = x_.data();
        a_.centre = own_centre_ ? centre_.data() : x_.data();
        a_.values = values_.data();
        a_.u = u_.data();
        a_.v = v_.data();
        a_.c = c_.data();
        a_.w = w_.data();
        a_.b = b_.data();
        a_.y = y_.data();
        a_.dy = dy_.data();
    }

    eqc_feature_steered a_{};
    Memory::Kind kind_;
    bool own_centre_;
    Array<int64_t> rowptr_, chunk_rows_, touched_start_, edge_of_slot_;
    Array<int32_t> col_, touched_, local_;
    Array<T> x_, centre_, values_, u_, v_, c_, w_, b_, dy_, y_, dx_, dcentre_, dvalues_, du_, dv_, dc_, dw_, db_;
};

// The same bits for any number of threads, and whatever was in the memory before.
template <class T>
void compare_threads(const Pattern& pattern, Shape shape, double logits, int flags, Wanted wanted) {
    std::vector<unsigned char> expected;
    for (Memory::Kind kind : kinds) {
        Problem<T> problem(kind, pattern, shape, logits);
        if (expected.empty()) expected = problem.results(flags, 1, wanted, 0);
        for (int threads = 1; threads <= 4; ++threads)
            REQUIRE(problem.results(flags, threads, wanted, 0xff) == expected,
                    "other results with %d threads: %s, %d channels, %d outputs, %d matrices, flags %d", threads,
                    pattern.name, int(shape.channels), int(shape.outputs), int(shape.matrices), flags);
    }
}

void both_types(const Pattern& pattern, Shape shape, double logits, int flags, Wanted wanted = everything) {
    compare_threads<float>(pattern, shape, logits, flags, wanted);
    compare_threads<double>(pattern, shape, logits, flags, wanted);
}

// Two callers at a time share the threads, and neither sees the other.
void concurrent(const Pattern& pattern, Shape shape) {
    const auto expected = Problem<float>(Memory::heap, pattern, shape, 1).results(0, 1, everything, 0);
    const auto call = [&] {
        Problem<float> problem(Memory::heap, pattern, shape, 1);
        for (int k = 0; k < 5; ++k) REQUIRE(problem.results(0, 3, everything, 0xff) == expected, "call %d", k);
    };
    std::thread first(call), second(call);
    first.join();
    second.join();
}

void null_pointers() {
    REQUIRE(eqc_feature_steered_forward_f32(nullptr, nullptr, nullptr) == EQC_BAD_ARGUMENT, "forward");
    REQUIRE(eqc_feature_steered_backward_f64(nullptr, nullptr, nullptr) == EQC_BAD_ARGUMENT, "backward");
    const eqc_feature_steered empty{};
    REQUIRE(eqc_feature_steered_forward_f64(&empty, nullptr, nullptr) == EQC_BAD_ARGUMENT, "forward");
    REQUIRE(eqc_feature_steered_backward_f32(&empty, nullptr, nullptr) == EQC_BAD_ARGUMENT, "backward");
}

}  // namespace

// feature_steered [ARRAY heap|page]: with a planted fault.
int main(int count, char** words) {
    if (count > 2) {
        short_array = words[1];
        kinds = {words[2] == std::string("page") ? Memory::page : Memory::heap};
    }
    null_pointers();
    for (int instructions : {0, int(EQC_AVX512), int(EQC_AVX2), int(EQC_PORTABLE)}) {
        for (const Pattern& pattern : patterns())
            for (int flags : {0, EQC_FS_FIRST | EQC_FS_RELU})
                both_types(pattern, shapes[0], 1, flags | instructions);
        const Pattern shared = random_pattern("shared", 39, 39, 4, false, false);
        const Pattern apart = random_pattern("apart", 39, 41, 4, true, false);
        for (const Shape& shape : shapes) {
            both_types(shared, shape, 1, instructions | EQC_FS_RELU);
            both_types(apart, shape, 1, instructions | EQC_FS_FIRST);
        }
        for (int wanted = 0; wanted < wanted_count; ++wanted)
            both_types(apart, shapes[2], 1, instructions | EQC_FS_DETERMINISTIC, Wanted(wanted));
        // Softmax from an edge's own logits: asked for, or because the factored one has lost its digits.
        both_types(shared, shapes[2], 1, instructions | EQC_FS_STABLE);
        both_types(shared, shapes[2], 100, instructions);
        both_types(star(5000), shapes[0], 1, instructions);
        both_types(star(5000), shapes[1], 1, instructions | EQC_FS_FIRST);
    }
    concurrent(patterns()[0], shapes[2]);
    std::printf("%lld calls\n", static_cast<long long>(calls.load()));
    return 0;
}
