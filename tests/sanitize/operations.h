// Calls of operations that must give the same bits whatever they compute on, and of impossible ones.
#ifndef EQC_TESTS_SANITIZE_OPERATIONS_H
#define EQC_TESTS_SANITIZE_OPERATIONS_H

#include <algorithm>
#include <atomic>
#include <cmath>

#include "arrays.h"
#include "common/contract.h"

// Races have nothing to do with where arrays end.
#if defined(__SANITIZE_THREAD__)
constexpr bool races_only = true;
#else
constexpr bool races_only = false;
#endif

inline std::vector<Memory::Kind> kinds = races_only ? std::vector<Memory::Kind>{Memory::heap}
                                                    : std::vector<Memory::Kind>{Memory::heap, Memory::page};
inline std::atomic<int64_t> calls{0};

using Bytes = std::vector<unsigned char>;

// An operation in float and in double.
template <class Arguments>
struct Operation {
    const char* name;
    size_t (*workspace[2])(const Arguments*);
    int (*run[2])(const Arguments*, void*, void*);
};

template <class T, class Arguments>
void call(const Operation<Arguments>& operation, const Arguments& a, Memory::Kind kind, unsigned char junk) {
    constexpr int type = sizeof(T) == sizeof(double);
    Workspace room(kind, operation.workspace[type](&a), junk);
    const int status = operation.run[type](&a, room.data(), nullptr);
    REQUIRE(status == EQC_OK, "%s gives %d with flags %d", operation.name, status, a.flags);
    ++calls;
}

// A problem gives the same bits for any number of threads, and whatever was in the memory before.
template <class Problem, class... Given>
void same_bits(const Given&... given) {
    Bytes expected;
    for (Memory::Kind kind : kinds) {
        Problem problem(kind, given...);
        if (expected.empty()) expected = problem.results(1, 0);
        const int most = kind == Memory::heap ? 4 : 2;
        for (int threads = 1; threads <= most; threads += races_only ? 2 : 1)
            REQUIRE(problem.results(threads, 0xff) == expected, "other results with %d threads: %s", threads,
                    problem.name());
    }
}

template <template <class> class Problem, class... Given>
void both_types(const Given&... given) {
    same_bits<Problem<float>>(given...);
    same_bits<Problem<double>>(given...);
}

template <class T>
void require_finite(const Bytes& all, const char* name) {
    for (size_t at = 0; at < all.size(); at += sizeof(T)) {
        T value;
        std::memcpy(&value, all.data() + at, sizeof value);
        REQUIRE(std::isfinite(value), "number %zu of %s", at / sizeof(T), name);
    }
}

// The first `count` numbers of the arguments, two at a time, are sizes of all kinds; there is no memory for anything.
template <class Arguments>
void extreme_sizes(const Operation<Arguments>& operation, size_t count, int instructions) {
    constexpr int64_t extremes[] = {INT64_MIN, -1, 0, 1, 5, 65536, INT32_MAX, int64_t(1) << 31, int64_t(1) << 40,
                                    int64_t(1) << 62, INT64_MAX};
    for (int type : {0, 1}) {
        REQUIRE(operation.run[type](nullptr, nullptr, nullptr) == EQC_BAD_ARGUMENT, "%s", operation.name);
        for (size_t i = 0; i < count; ++i)
            for (size_t j = i; j < count; ++j)
                for (int64_t first : extremes)
                    for (int64_t second : extremes) {
                        Arguments a{};
                        auto* sizes = reinterpret_cast<int64_t*>(&a);
                        std::fill_n(sizes, count, 1);
                        sizes[i] = first;
                        sizes[j] = second;
                        a.flags = instructions;
                        operation.workspace[type](&a);
                        REQUIRE(operation.run[type](&a, nullptr, nullptr) != EQC_OK,
                                "%s: sizes %d and %d are %lld, %lld", operation.name, int(i), int(j),
                                static_cast<long long>(first), static_cast<long long>(second));
                    }
    }
}

// The words of a driver, [PART.ARRAY heap|page], ask for a planted fault, and for no other part than that which has it.
inline void plant(int count, char** words) {
    if (count <= 2) return;
    short_array = words[1];
    kinds = {words[2] == std::string("page") ? Memory::page : Memory::heap};
}
inline bool runs(const char* part) {
    return short_array.empty() || short_array.compare(0, short_array.find('.'), part) == 0;
}

#endif
