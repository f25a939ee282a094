// The pool: several callers at a time, calls inside of bodies, and sums in order.
#include "common/parallel.h"

#include <thread>

#include "arrays.h"

namespace {

uint64_t chain(int threads, int64_t items) {
    uint64_t sum = 0;
    std::vector<int64_t> done(size_t(items), 0);
    eqc::Turnstile turn;
    eqc::parallel_for(threads, items, [&](int64_t item, int) {
        eqc::parallel_for(threads, 3, [&](int64_t, int) { done[size_t(item)] += 1; });
        turn.wait_for(item);
        sum = sum * 6364136223846793005u + uint64_t(done[size_t(item)] * item);
        turn.done();
    });
    return sum;
}

void caller(int threads) {
    for (int round = 0; round < 300; ++round)
        for (int64_t items : {1, 2, 5, 60})
            REQUIRE(chain(threads, items) == chain(1, items), "%d threads, %d items", threads, int(items));
}

}  // namespace

int main() {
    caller(4);
    std::thread two(caller, 2), three(caller, 3), five(caller, 5);
    two.join();
    three.join();
    five.join();
    std::puts("done");
    return 0;
}
