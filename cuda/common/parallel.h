/* Work shared among threads. Items are numbered, and what an item computes never depends on who computes it. */
#ifndef EQC_PARALLEL_H
#define EQC_PARALLEL_H

#include <atomic>
#include <cstdint>
#include <functional>

namespace eqc {

/* Threads that a call with `wanted` (0: all) uses for `items` pieces of work. */
int thread_count(int wanted, int64_t items);

/* Calls body(item, thread) for each item in [0, items) and returns when all are done.
 *
 * Items are handed out in ascending order to whoever is free: the caller, which is thread 0, and up to `threads` - 1
 * helpers. The helpers are started when they are first needed and stay with the process. Fewer take part, down to the
 * caller alone, when another call has them, when the system gives no more threads, and inside a body, where everything
 * runs in the caller. A body must not throw. */
void parallel_for(int threads, int64_t items, const std::function<void(int64_t, int)>& body);

/* Lets items through one after the other, in their order, so that sums do not depend on the number of threads.
 *
 * Every item of a parallel_for calls wait_for(item), then done(). Nobody waits forever, however few threads there are:
 * items are handed out in ascending order, so the lowest one that has not passed is always being worked on, and it
 * waits for nobody. */
class Turnstile {
   public:
    Turnstile();
    Turnstile(const Turnstile&) = delete;
    Turnstile& operator=(const Turnstile&) = delete;
    void wait_for(int64_t item);
    void done();

   private:
    std::atomic<uint32_t> next_; /* the item that may pass, modulo 2^32 */
    std::atomic<int> sleepers_;
};

}  // namespace eqc

#endif
