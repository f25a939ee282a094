#include "parallel.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace eqc {

int thread_count(int wanted, int64_t items) {
    if (wanted <= 0) {
        cpu_set_t allowed;
        wanted = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed)
                                                                     : int(std::thread::hardware_concurrency());
    }
    if (wanted > items) wanted = int(items);
    return wanted < 1 ? 1 : wanted;
}

void parallel_for(int threads, int64_t items, const std::function<void(int64_t, int)>& body) {
    if (threads <= 1 || items <= 1) {
        for (int64_t item = 0; item < items; ++item) body(item, 0);
        return;
    }
    std::atomic<int64_t> next{0};
    const auto work = [&](int thread) {
        for (int64_t item; (item = next.fetch_add(1)) < items;) body(item, thread);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(size_t(threads) - 1);
    for (int thread = 1; thread < threads; ++thread) helpers.emplace_back(work, thread);
    work(0);
    for (std::thread& helper : helpers) helper.join();
}

struct Turnstile::State {
    std::mutex mutex;
    std::condition_variable passed;
    int64_t next = 0;
};

Turnstile::Turnstile() : state_(new State) {}
Turnstile::~Turnstile() { delete state_; }

void Turnstile::wait_for(int64_t item) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->passed.wait(lock, [&] { return state_->next == item; });
}

void Turnstile::done() {
    {
        std::lock_guard<std::mutex> lock(state_->mutex);
        ++state_->next;
    }
    state_->passed.notify_all();
}

}  // namespace eqc
