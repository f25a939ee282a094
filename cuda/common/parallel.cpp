/* A pool of helper threads.
 *
 * Helpers watch for work for a moment and then sleep, because the frameworks around have pools of their own on the same
 * cores. A call takes idle helpers out of the pool and invites them. It never waits for one that has not come yet: when
 * the items are gone it takes the invitation back, so a short call costs no thread's awakening.
 *
 * Helpers live as long as the process. They are detached and the pool is never destroyed, so there is nothing to wait
 * for at exit; for the same reason the library must stay in memory (-z nodelete). A forked child has no helpers and
 * begins with a new pool.
 */
#include "parallel.h"

#include "contract.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <mutex>
#include <new>
#include <thread>

namespace eqc {
namespace {

using Body = std::function<void(int64_t, int)>;
using Word = std::atomic<uint32_t>;

static_assert(sizeof(Word) == sizeof(uint32_t) && Word::is_always_lock_free, "the system sleeps on the bare number");

constexpr int most_helpers = 255;
constexpr size_t cache_line = 64;
/* About what putting a thread to sleep and waking it costs. */
constexpr std::chrono::microseconds watch_time{20};

/* Sleeps unless the word has changed; may return for no reason. Only a wake() that shares a bit ends it. */
void sleep_while(Word& word, uint32_t value, uint32_t bits = FUTEX_BITSET_MATCH_ANY) {
    syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, value, nullptr, nullptr, bits);
}
void wake(Word& word, uint32_t bits = FUTEX_BITSET_MATCH_ANY) {
    syscall(SYS_futex, &word, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, nullptr, nullptr, bits);
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/* Whether it came true within the time to watch. */
template <class Condition>
bool watch(const Condition& condition) {
    if (condition()) return true;
    const auto end = std::chrono::steady_clock::now() + watch_time;
    do {
        relax();
        if (condition()) return true;
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

/* Whether this thread is in a body. */
thread_local bool inside = false;

/* Who lends threads to what this thread calls; NULL: nobody. */
thread_local eqc_lend lender = nullptr;

struct Helper;

struct Job {
    const Body& body;
    const int64_t items;
    int helpers = 0;
    Helper* helper[most_helpers]; /* thread t is helper[t - 1] */
    alignas(cache_line) std::atomic<int64_t> next{0};

    Job(const Body& body, int64_t items) : body(body), items(items) {}
    void work(int thread) noexcept;
    /* The same on any thread. */
    void work_inside(int thread) noexcept {
        const bool outer = inside;
        inside = true;
        work(thread);
        inside = outer;
    }
};

/* One thread. Its word goes through a call like this:
 *
 *   idle or asleep --invite--> invited --the helper comes--> working [--the caller sleeps--> awaited] --> idle
 *                              invited --the call is over--> idle
 */
struct alignas(cache_line) Helper {
    enum State : uint32_t { idle, asleep, invited, working, awaited };

    Word state{idle};
    Job* job = nullptr;
    int thread = 0;
    Helper* next_idle = nullptr;

    void invite(Job* its_job, int as_thread) {
        job = its_job;
        thread = as_thread;
        if (state.exchange(invited) == asleep) wake(state);
    }

    /* When this returns the helper is not in the job and will not enter it. */
    void settle() {
        const auto over = [this] {
            const uint32_t now = state.load(std::memory_order_acquire);
            return now != working && now != awaited;
        };
        uint32_t expected = invited;
        if (state.compare_exchange_strong(expected, idle) || watch(over)) return;
        expected = working;
        state.compare_exchange_strong(expected, awaited);
        while (!over()) sleep_while(state, awaited);
    }

    [[noreturn]] void run() {
        inside = true;
        for (;;) {
            if (!watch([this] { return state.load(std::memory_order_relaxed) == invited; })) {
                uint32_t expected = idle;
                state.compare_exchange_strong(expected, asleep);
                while (state.load(std::memory_order_relaxed) == asleep) sleep_while(state, asleep);
            }
            uint32_t expected = invited;
            if (!state.compare_exchange_strong(expected, working)) continue;
            job->work(thread);
            if (state.exchange(idle) == awaited) wake(state);
        }
    }
};

/* Threads wake each other along a binary tree, which is quicker than one after the other. */
void Job::work(int thread) noexcept {
    for (int child = 2 * thread + 1; child <= 2 * thread + 2 && child <= helpers; ++child)
        if (next.load(std::memory_order_relaxed) < items) helper[child - 1]->invite(this, child);
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, thread);
}

/* Starts the thread of a helper; null when the system gives none. */
Helper* started_helper() {
    Helper* helper = new (std::nothrow) Helper;
    if (!helper) return nullptr;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* Signals are for the program's own threads, except those that tell of a fault in this one. */
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_t thread;
    const auto run = [](void* self) -> void* { static_cast<Helper*>(self)->run(); };
    const bool started = pthread_create(&thread, &attributes, run, helper) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    if (started) {
        pthread_setname_np(thread, "eqconv");
        return helper;
    }
    delete helper;
    return nullptr;
}

class Pool {
   public:
    /* Gives a job up to `wanted` helpers. There are never more than the largest call asked for: of two calls at the
     * same time the second has what is left. */
    void take(Job& job, int wanted) {
        const std::lock_guard<std::mutex> lock(mutex_);
        while (job.helpers < wanted) {
            Helper* helper = idle_;
            if (helper)
                idle_ = helper->next_idle;
            else if (started_ < wanted && (helper = started_helper()))
                ++started_;
            else
                break;
            job.helper[job.helpers++] = helper;
        }
    }

    /* Those that came first are the first to be taken again: they are the likeliest to be awake. */
    void give_back(Job& job) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (int k = job.helpers; k-- > 0;) {
            job.helper[k]->next_idle = idle_;
            idle_ = job.helper[k];
        }
    }

   private:
    std::mutex mutex_;
    Helper* idle_ = nullptr;
    int started_ = 0;
};

std::atomic<Pool*> the_pool{nullptr};

/* Null when there is no memory for one. */
Pool* pool() {
    Pool* known = the_pool.load();
    if (known) return known;
    Pool* made = new (std::nothrow) Pool;
    if (the_pool.compare_exchange_strong(known, made)) return made;
    delete made;
    return known;
}

/* In a child the helpers are gone, and the lock may be held by a thread that is gone, too. */
const int forks_are_seen = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });

}  // namespace

int thread_count(int wanted, int64_t items) {
    if (wanted <= 0) {
        cpu_set_t allowed;
        wanted = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed)
                                                                     : int(std::thread::hardware_concurrency());
    }
    if (wanted > items) wanted = int(items);
    if (wanted > 1 + most_helpers) wanted = 1 + most_helpers;
    return wanted < 1 ? 1 : wanted;
}

void parallel_for(int threads, int64_t items, const Body& body) {
    if (threads > items) threads = int(items);
    const int wanted = threads - 1 < most_helpers ? threads - 1 : most_helpers;
    const bool outer = inside;
    if (wanted > 0 && !outer && lender) {
        Job job(body, items);
        return lender(
            wanted + 1, [](void* its_job, int thread) { static_cast<Job*>(its_job)->work_inside(thread); }, &job);
    }
    Pool* shared = wanted > 0 && !outer ? pool() : nullptr;
    Job job(body, items);
    if (shared) shared->take(job, wanted);
    job.work_inside(0);
    if (!shared) return;
    /* In the order of the threads: once one is settled nobody is left who could invite those below it in the tree. */
    for (int k = 0; k < job.helpers; ++k) job.helper[k]->settle();
    shared->give_back(job);
}

}  // namespace eqc

void eqc_borrow_threads(eqc_lend lend) { eqc::lender = lend; }

namespace eqc {

Turnstile::Turnstile() : next_(0), sleepers_(0) {}

void Turnstile::wait_for(int64_t item) {
    const uint32_t mine = uint32_t(item);
    const auto open = [&] { return next_.load() == mine; };
    if (watch(open)) return;
    ++sleepers_;
    for (uint32_t now; (now = next_.load()) != mine;) sleep_while(next_, now, 1u << mine % 32);
    --sleepers_;
}

void Turnstile::done() {
    const uint32_t now = ++next_;
    if (sleepers_.load() > 0) wake(next_, 1u << now % 32);
}

}  // namespace eqc
