/* Threads, blocks and warps as kernels see them: indices, barriers, warp collectives; and the launch of a grid. */
#ifndef EQC_EMULATED_THREADS_H
#define EQC_EMULATED_THREADS_H

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "emulated_maths.h"
#include "emulated_types.h"

typedef struct CUstream_st* cudaStream_t;

namespace eqc_emulation {

struct Place {
    const char* file;
    int line;
};

/* What a kernel can ask about itself. */
struct BlockIndices {
    uint3 block_index;
    uint3 block_size;
    uint3 grid_size;
};
struct ThreadIndices {
    uint3 index;
    const BlockIndices* block;
};

/* The thread whose fibre runs on this thread of the host; hidden, so that finding it stays within the library. */
extern __thread ThreadIndices* current __attribute__((visibility("hidden")));

enum class Barrier { Sync, Or, And, Count };
enum class Collective {
    Sync,
    Shuffle,
    ShuffleUp,
    ShuffleDown,
    ShuffleXor,
    Ballot,
    Any,
    All,
    Add,
    Min,
    Max,
    AddSigned,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Active
};

/* In emulator.cpp. */
int arrive(Barrier kind, bool predicate, Place place);
uint64_t take_part(Collective kind, unsigned mask, uint64_t value, size_t bytes, int parameter, int width, Place place);
[[noreturn]] void trap(Place place);

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int parameter, int width, Place place) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = take_part(kind, mask, bits, sizeof(T), parameter, width, place);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

using Body = void (*)(void*);
void run_grid(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
              void* context);

/* A kernel's name with its template arguments, as the compiler writes it. */
template <auto kernel>
const char* kernel_name() {
    return __PRETTY_FUNCTION__;
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            Arguments&&... arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<std::decay_t<Parameters>...> arguments;
    } call{kernel, {std::forward<Arguments>(arguments)...}};
    const Body body = [](void* context) {
        const Call& its = *static_cast<const Call*>(context);
        std::apply(its.kernel, its.arguments);  // each thread has its own copy
    };
    run_grid(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, body, &call);
}

}  // namespace eqc_emulation

/* (kernel)<<<grid, block, shared_bytes, stream>>>(arguments...) as EQC_LAUNCH(kernel, grid, block, shared_bytes,
 * stream, arguments...). `kernel` is a constant, in parentheses when it has commas. */
#define EQC_LAUNCH(kernel, ...) ::eqc_emulation::launch(::eqc_emulation::kernel_name<kernel>(), kernel, __VA_ARGS__)

/* Macros as these are built into the device's compiler: names without a declaration. */
#define threadIdx (::eqc_emulation::current->index)
#define blockIdx (::eqc_emulation::current->block->block_index)
#define blockDim (::eqc_emulation::current->block->block_size)
#define gridDim (::eqc_emulation::current->block->grid_size)
constexpr int warpSize = 32;

#define EQC_EMULATED_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EQC_EMULATED_PLACE) {
    eqc_emulation::arrive(eqc_emulation::Barrier::Sync, false, {file, line});
}
inline int __syncthreads_or(int predicate, EQC_EMULATED_PLACE) {
    return eqc_emulation::arrive(eqc_emulation::Barrier::Or, predicate != 0, {file, line});
}
inline int __syncthreads_and(int predicate, EQC_EMULATED_PLACE) {
    return eqc_emulation::arrive(eqc_emulation::Barrier::And, predicate != 0, {file, line});
}
inline int __syncthreads_count(int predicate, EQC_EMULATED_PLACE) {
    return eqc_emulation::arrive(eqc_emulation::Barrier::Count, predicate != 0, {file, line});
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EQC_EMULATED_PLACE) {
    eqc_emulation::take_part(eqc_emulation::Collective::Sync, mask, 0, 0, 0, 32, {file, line});
}
inline unsigned __activemask(EQC_EMULATED_PLACE) {
    return unsigned(eqc_emulation::take_part(eqc_emulation::Collective::Active, 0, 0, 0, 0, 32, {file, line}));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EQC_EMULATED_PLACE) {
    return unsigned(
        eqc_emulation::take_part(eqc_emulation::Collective::Ballot, mask, predicate != 0, 4, 0, 32, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, EQC_EMULATED_PLACE) {
    return int(eqc_emulation::take_part(eqc_emulation::Collective::Any, mask, predicate != 0, 4, 0, 32, {file, line}));
}
inline int __all_sync(unsigned mask, int predicate, EQC_EMULATED_PLACE) {
    return int(eqc_emulation::take_part(eqc_emulation::Collective::All, mask, predicate != 0, 4, 0, 32, {file, line}));
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap(EQC_EMULATED_PLACE) { eqc_emulation::trap({file, line}); }

/* Functions for each type rather than one template, so that p[i] of a checked pointer converts. */
#define EQC_EMULATED_SHUFFLES(T)                                                                                      \
    inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EQC_EMULATED_PLACE) {                      \
        return eqc_emulation::shuffle(eqc_emulation::Collective::Shuffle, mask, value, lane, width, {file, line});    \
    }                                                                                                                 \
    inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EQC_EMULATED_PLACE) {             \
        return eqc_emulation::shuffle(eqc_emulation::Collective::ShuffleUp, mask, value, int(delta), width,           \
                                      {file, line});                                                                  \
    }                                                                                                                 \
    inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EQC_EMULATED_PLACE) {           \
        return eqc_emulation::shuffle(eqc_emulation::Collective::ShuffleDown, mask, value, int(delta), width,         \
                                      {file, line});                                                                  \
    }                                                                                                                 \
    inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EQC_EMULATED_PLACE) {                  \
        return eqc_emulation::shuffle(eqc_emulation::Collective::ShuffleXor, mask, value, bits, width, {file, line}); \
    }
EQC_EMULATED_SHUFFLES(int)
EQC_EMULATED_SHUFFLES(unsigned)
EQC_EMULATED_SHUFFLES(long)
EQC_EMULATED_SHUFFLES(unsigned long)
EQC_EMULATED_SHUFFLES(long long)
EQC_EMULATED_SHUFFLES(unsigned long long)
EQC_EMULATED_SHUFFLES(float)
EQC_EMULATED_SHUFFLES(double)
#undef EQC_EMULATED_SHUFFLES

#define EQC_EMULATED_REDUCE(name, T, kind)                                                                \
    inline T __reduce_##name##_sync(unsigned mask, T value, EQC_EMULATED_PLACE) {                         \
        return eqc_emulation::shuffle(eqc_emulation::Collective::kind, mask, value, 0, 32, {file, line}); \
    }
EQC_EMULATED_REDUCE(add, unsigned, Add)
EQC_EMULATED_REDUCE(add, int, AddSigned)
EQC_EMULATED_REDUCE(min, unsigned, Min)
EQC_EMULATED_REDUCE(min, int, MinSigned)
EQC_EMULATED_REDUCE(max, unsigned, Max)
EQC_EMULATED_REDUCE(max, int, MaxSigned)
EQC_EMULATED_REDUCE(and, unsigned, And)
EQC_EMULATED_REDUCE(or, unsigned, Or)
EQC_EMULATED_REDUCE(xor, unsigned, Xor)
#undef EQC_EMULATED_REDUCE

#endif
