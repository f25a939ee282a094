/* Work shared among threads. Items are numbered, and what an item computes never depends on who computes it. */
#ifndef EQC_PARALLEL_H
#define EQC_PARALLEL_H

#include <cstdint>
#include <functional>

namespace eqc {

/* Threads that a call with `wanted` (0: all) uses for `items` pieces of work. */
int thread_count(int wanted, int64_t items);

/* Calls body(item, thread) for each item in [0, items), items taken in ascending order. */
void parallel_for(int threads, int64_t items, const std::function<void(int64_t, int)>& body);

/* Lets items through one after the other, in their order, so that sums do not depend on the number of threads. */
class Turnstile {
   public:
    Turnstile();
    ~Turnstile();
    Turnstile(const Turnstile&) = delete;
    Turnstile& operator=(const Turnstile&) = delete;
    void wait_for(int64_t item);
    void done();

   private:
    struct State;
    State* state_;
};

}  // namespace eqc

#endif
