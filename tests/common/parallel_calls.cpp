// Calls of parallel_for that tests/common/test_parallel.py makes through ctypes.
#include "common/contract.h"
#include "common/parallel.h"

#include <sched.h>

#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#define DOOR extern "C" __attribute__((visibility("default")))

namespace {

constexpr std::chrono::seconds patience{20};
std::atomic<int> holding{0};
std::atomic<bool> held{false};

void dawdle(int steps) {
    for (volatile int k = steps; k > 0; k = k - 1) {
    }
}

}  // namespace

// The thread of each item, and how often it was computed.
DOOR void trace(int threads, int64_t items, int32_t* thread_of, int64_t* times) {
    std::mutex mutex;
    eqc::parallel_for(threads, items, [&](int64_t item, int thread) {
        const std::lock_guard<std::mutex> lock(mutex);
        thread_of[item] = thread;
        ++times[item];
    });
}

// Depends on the order of the items.
DOOR uint64_t chain(int threads, int64_t items) {
    uint64_t sum = 0;
    eqc::Turnstile turn;
    eqc::parallel_for(threads, items, [&](int64_t item, int) {
        // So that others come to the turnstile before it is their turn.
        if (item % 7 == 0) dawdle(2000);
        turn.wait_for(item);
        sum = sum * 6364136223846793005u + uint64_t(item) + 1;
        turn.done();
    });
    return sum;
}

// How many threads were in a body at the same time: each item waits for all the others.
DOOR int meeting(int threads) {
    std::atomic<int> present{0};
    std::mutex mutex;
    std::set<int> met;
    const auto end = std::chrono::steady_clock::now() + patience;
    eqc::parallel_for(threads, threads, [&](int64_t, int thread) {
        ++present;
        while (present < threads && std::chrono::steady_clock::now() < end) sched_yield();
        const std::lock_guard<std::mutex> lock(mutex);
        if (present == threads) met.insert(thread);
    });
    return int(met.size());
}

// The largest number of a thread in calls for `threads` inside the bodies of a call for two, and their items in all.
DOOR int nested(int threads, int* largest) {
    std::atomic<int> seen{0}, most{0};
    eqc::parallel_for(2, 2, [&](int64_t, int) {
        eqc::parallel_for(threads, threads, [&](int64_t, int thread) {
            // Time enough for a helper to come, if one was invited.
            const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
            while (most == 0 && std::chrono::steady_clock::now() < end) sched_yield();
            if (thread > 0) most = thread;
            ++seen;
        });
    });
    *largest = most;
    return seen;
}

// A call that keeps all its threads until release(); in_hold() says how many have come.
DOOR void hold(int threads) {
    held = true;
    eqc::parallel_for(threads, threads, [&](int64_t, int) {
        ++holding;
        while (held) sched_yield();
        --holding;
    });
}
DOOR int in_hold() { return holding; }
DOOR void release() { held = false; }

namespace {

std::atomic<int> lent{0};

void lend_threads(int n, void (*work)(void*, int), void* context) {
    std::vector<std::thread> threads;
    for (int k = 0; k < n; ++k) threads.emplace_back(work, context, k);
    for (std::thread& thread : threads) thread.join();
    lent += n;
}

// One after the other, the last one first.
void lend_nothing(int n, void (*work)(void*, int), void* context) {
    for (int k = n; k-- > 0;) work(context, k);
    lent += n;
}

}  // namespace

// From now on this thread's calls compute on threads lent by 1: new ones, 2: its own; 0: on the pool's.
DOOR void borrow(int kind) { eqc_borrow_threads(kind == 0 ? nullptr : kind == 1 ? lend_threads : lend_nothing); }

// How many threads were lent so far.
DOOR int threads_lent() { return lent; }
