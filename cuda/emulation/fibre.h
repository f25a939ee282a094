/* Fibres: stacks of their own on one thread of the host, and the switch from one to another. ucontext would do, but its
 * switch makes a system call for the signal mask, which costs more than most of what a fibre does between two switches.
 */
#ifndef EQC_EMULATION_FIBRE_H
#define EQC_EMULATION_FIBRE_H

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__) && defined(__LP64__) && (defined(__x86_64__) || defined(__aarch64__)) && \
    !defined(EQC_FIBRES_BY_UCONTEXT)
#define EQC_FIBRE_ASSEMBLY
#else
#include <ucontext.h>
#endif

namespace eqc_emulation {

#ifdef EQC_FIBRE_ASSEMBLY

/* Puts the registers that a call preserves on the stack, keeps the stack pointer in *from, and takes up `to`. */
extern "C" void eqc_fibre_switch(void** from, void* to) __attribute__((visibility("hidden")));

struct Context {
    void* stack_pointer = nullptr;
};

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16;
#ifdef __x86_64__
    void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and no caller of the entry
    std::memset(frame, 0, 8 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(entry);
#else
    void** frame = reinterpret_cast<void**>(top) - 20;  // x19 to x30, d8 to d15
    std::memset(frame, 0, 20 * sizeof(void*));
    frame[11] = reinterpret_cast<void*>(entry);  // x30, where the switch returns to
#endif
    context.stack_pointer = frame;
}
inline void switch_fibre(Context& from, Context& to) { eqc_fibre_switch(&from.stack_pointer, to.stack_pointer); }

#else

struct Context {
    ucontext_t state;
};

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = bytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}
inline void switch_fibre(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

/* Stacks for the threads of a block, used again for every block. Only the pages that are touched take memory. */
class Stacks {
   public:
    /* The odd 4288 bytes spread the tops of the stacks over the sets of the caches. */
    static constexpr size_t kBytes = 64 * 1024 + 4288;

    explicit Stacks(int count) : bytes_(size_t(count) * kBytes) {
        void* memory =
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        memory_ = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
#ifdef MADV_NOHUGEPAGE
        if (memory_ != nullptr) {
            madvise(memory_, bytes_, MADV_NOHUGEPAGE);
        }
#endif
    }
    ~Stacks() {
        if (memory_ != nullptr) {
            munmap(memory_, bytes_);
        }
    }
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

    bool available() const { return memory_ != nullptr; }
    char* stack(int index) const { return memory_ + size_t(index) * kBytes; }
    void seal(int index) const {
        uint64_t* words = reinterpret_cast<uint64_t*>(stack(index));
        for (int i = 0; i < kWords; ++i) {
            words[i] = kCanary;
        }
    }
    /* Whether the far end of the stack is as it was sealed: the fibre has not run over it. */
    bool intact(int index) const {
        const uint64_t* words = reinterpret_cast<const uint64_t*>(stack(index));
        uint64_t difference = 0;
        for (int i = 0; i < kWords; ++i) {
            difference |= words[i] ^ kCanary;
        }
        return difference == 0;
    }

   private:
    static constexpr int kWords = 8;
    static constexpr uint64_t kCanary = 0x5ca1ab1e0ddba11eu;
    size_t bytes_;
    char* memory_;
};

}  // namespace eqc_emulation

#endif
