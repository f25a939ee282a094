// The probes, with every instruction set, alone and at the same time.
#include "probes/probes.h"

#include <cmath>
#include <thread>

#include "arrays.h"

namespace {

template <class T, class Operation>
void multiply_add(Operation operation, int flags, int threads) {
    Array<double> flops(Memory::heap, "flops", 1), seconds(Memory::heap, "seconds", 1);
    Array<T> sum(Memory::heap, "sum", 1);
    eqc_multiply_add a{};
    a.rounds = 100;
    a.flags = flags;
    a.threads = threads;
    a.flops = flops.data();
    a.seconds = seconds.data();
    a.sum = sum.data();
    REQUIRE(operation(&a, nullptr, nullptr) == EQC_OK, "flags %d", flags);
    REQUIRE(*a.flops > 0 && *a.seconds >= 0 && std::isfinite(double(sum.data()[0])), "flags %d", flags);
}

template <class T, class Operation>
void copy(Operation operation, int64_t size, int flags, int threads) {
    std::vector<T> content;
    for (int64_t k = 0; k < size; ++k) content.push_back(T(k));
    Array<T> source(Memory::heap, "source", content), target(Memory::heap, "target", size);
    Array<double> bytes(Memory::heap, "bytes", 1), seconds(Memory::heap, "seconds", 1);
    eqc_copy a{};
    a.size = size;
    a.rounds = 2;
    a.flags = flags;
    a.threads = threads;
    a.source = source.data();
    a.target = target.data();
    a.bytes = bytes.data();
    a.seconds = seconds.data();
    REQUIRE(operation(&a, nullptr, nullptr) == EQC_OK, "flags %d", flags);
    for (int64_t k = 0; k < size; ++k) REQUIRE(target.data()[k] == T(k), "element %d of %d", int(k), int(size));
}

void all() {
    for (int flags : {0, int(EQC_PROBE_AVX2), int(EQC_PROBE_PORTABLE)})
        for (int threads : {1, 2, 3}) {
            multiply_add<float>(eqc_probe_multiply_add_f32, flags, threads);
            multiply_add<double>(eqc_probe_multiply_add_f64, flags, threads);
            for (int streamed : {0, int(EQC_PROBE_STREAMED)})
                for (int64_t size : {0, 1, 15, 64, 1003}) {
                    copy<float>(eqc_probe_copy_f32, size, flags | streamed, threads);
                    copy<double>(eqc_probe_copy_f64, size, flags | streamed, threads);
                }
        }
}

}  // namespace

int main() {
    REQUIRE(eqc_probe_multiply_add_f32(nullptr, nullptr, nullptr) == EQC_BAD_ARGUMENT, "no argument");
    REQUIRE(eqc_probe_copy_f64(nullptr, nullptr, nullptr) == EQC_BAD_ARGUMENT, "no argument");
    all();
    std::puts("done");
    return 0;
}
