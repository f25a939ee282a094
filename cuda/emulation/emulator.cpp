/* Runs a grid: one block after the other, the threads of a block as fibres that stop where they wait for each other.
 * The order is always the same, so are the results. */
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#ifdef EQC_FIBRE_ASSEMBLY
#ifdef __x86_64__
asm(R"(
    .text
    .p2align 4
    .hidden eqc_fibre_switch
    .globl eqc_fibre_switch
    .type eqc_fibre_switch, @function
eqc_fibre_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size eqc_fibre_switch, .-eqc_fibre_switch
)");
#else
asm(R"(
    .text
    .p2align 4
    .hidden eqc_fibre_switch
    .globl eqc_fibre_switch
    .type eqc_fibre_switch, %function
eqc_fibre_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size eqc_fibre_switch, .-eqc_fibre_switch
)");
#endif
#endif

namespace eqc_emulation {

__thread ThreadIndices* current = nullptr;
thread_local std::string report;
thread_local cudaError_t last_error = cudaSuccess;

Device::Device()
    : stacks(kMaxThreads),
      threads(kMaxThreads),
      warps{},
      indices{},
      launch{},
      alive(0),
      failed(false),
      checked(true),
      arena(new char[kLargestShared + kStaticShared + 64 * kMaxRegions + 128]),
      shared(reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(arena.get()) + 127) / 128 * 128)),
      shared_used(0),
      region_count(0),
      words((kLargestShared + kStaticShared + 64 * kMaxRegions) / 4),
      order(kMaxThreads / kWarp),
      epoch(0),
      first_epoch(0) {}

Device& device() {
    static thread_local std::unique_ptr<Device> its;
    if (its == nullptr) {
        its = std::make_unique<Device>();
    }
    return *its;
}

/* ---- Faults ----------------------------------------------------------------------------------------------------- */

std::string text(const char* format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    return line;
}

namespace {

std::string triple(uint3 v) { return text("(%u, %u, %u)", v.x, v.y, v.z); }

std::string place_name(Place place) {
    const char* slash = std::strrchr(place.file, '/');
    return text("%s:%d", slash == nullptr ? place.file : slash + 1, place.line);
}

const char* name_of(Barrier kind) {
    switch (kind) {
        case Barrier::Sync: return "__syncthreads";
        case Barrier::Or: return "__syncthreads_or";
        case Barrier::And: return "__syncthreads_and";
        case Barrier::Count: return "__syncthreads_count";
    }
    return "";
}

const char* name_of(Collective kind) {
    switch (kind) {
        case Collective::Sync: return "__syncwarp";
        case Collective::Shuffle: return "__shfl_sync";
        case Collective::ShuffleUp: return "__shfl_up_sync";
        case Collective::ShuffleDown: return "__shfl_down_sync";
        case Collective::ShuffleXor: return "__shfl_xor_sync";
        case Collective::Ballot: return "__ballot_sync";
        case Collective::Any: return "__any_sync";
        case Collective::All: return "__all_sync";
        case Collective::Add:
        case Collective::AddSigned: return "__reduce_add_sync";
        case Collective::Min:
        case Collective::MinSigned: return "__reduce_min_sync";
        case Collective::Max:
        case Collective::MaxSigned: return "__reduce_max_sync";
        case Collective::And: return "__reduce_and_sync";
        case Collective::Or: return "__reduce_or_sync";
        case Collective::Xor: return "__reduce_xor_sync";
        case Collective::Active: return "__activemask";
    }
    return "";
}

/* What a thread is doing when it does not run. */
std::string doing(const Thread& t) {
    if (t.state == State::Exited) {
        return "has exited";
    }
    if (t.state == State::AtBarrier) {
        return text("waits at %s (%s)", name_of(t.barrier), place_name(t.place).c_str());
    }
    return text("waits at %s with mask 0x%08x (%s)", name_of(t.request.kind), t.request.mask,
                place_name(t.place).c_str());
}

/* "fused<float, 32>" from "... [with auto kernel = {anonymous}::fused<float, 32>]". */
std::string plain_name(const std::string& pretty) {
    const size_t at = pretty.find("kernel = ");
    std::string name = at == std::string::npos ? pretty : pretty.substr(at + 9, pretty.rfind(']') - at - 9);
    for (const char* noise : {"{anonymous}::", "(anonymous namespace)::", "&"}) {
        for (size_t k = name.find(noise); k != std::string::npos; k = name.find(noise)) {
            name.erase(k, std::strlen(noise));
        }
    }
    return name;
}

/* Gives the host's thread back to the scheduler, until that resumes this fibre. */
void pause() {
    Thread& t = running();
    switch_fibre(t.context, device().scheduler);
}

}  // namespace

std::string thread_name(int id) { return triple(device().threads[size_t(id)].index); }

void record_fault(const Thread& thread, const std::string& what) {
    Device& d = device();
    d.failed = true;
    report = "kernel " + plain_name(d.launch.name) + ", block " + triple(d.indices.block_index) + ", thread " +
             triple(thread.index) + ": " + what;
}

void fault(const std::string& what) {
    if (current == nullptr) {
        std::fprintf(stderr, "eqconv, emulated device: host code %s\n", what.c_str());
        std::abort();
    }
    record_fault(running(), what);
    pause();  // for good: a failed grid is not resumed
    std::abort();
}

void trap(Place place) { fault("calls __trap (" + place_name(place) + ")"); }

/* ---- Barriers and collectives ----------------------------------------------------------------------------------- */

int arrive(Barrier kind, bool predicate, Place place) {
    Thread& t = running();
    t.state = State::AtBarrier;
    t.barrier = kind;
    t.predicate = predicate;
    t.place = place;
    pause();
    return t.result;
}

namespace {

template <class T, class Fold>
uint64_t fold(const Thread* lanes, unsigned mask, Fold combine) {
    bool first = true;
    T result{};
    for (; mask != 0; mask &= mask - 1) {
        const T value = T(lanes[__builtin_ctz(mask)].request.value);
        result = first ? value : combine(result, value);
        first = false;
    }
    return uint64_t(uint32_t(result));
}

/* The lane that a shuffle reads. */
int source_lane(const Request& request, int lane) {
    const int first = lane & ~(request.width - 1);
    switch (request.kind) {
        case Collective::Shuffle: return first + (request.parameter & (request.width - 1));
        case Collective::ShuffleUp:
            return unsigned(request.parameter) > unsigned(lane - first) ? lane : lane - request.parameter;
        case Collective::ShuffleDown:
            return unsigned(request.parameter) >= unsigned(first + request.width - lane) ? lane
                                                                                         : lane + request.parameter;
        default: {
            const int source = lane ^ request.parameter;
            return source < 0 || source >= first + request.width ? lane : source;
        }
    }
}

/* Computes what all lanes of `mask` get. */
void complete(Device& d, Thread* lanes, int warp, unsigned mask) {
    const Collective kind = lanes[__builtin_ctz(mask)].request.kind;
    uint64_t common = 0;
    switch (kind) {
        case Collective::Sync: synchronize_lanes(d.order[size_t(warp)], mask, d.warps[warp].exists); break;
        case Collective::Shuffle:
        case Collective::ShuffleUp:
        case Collective::ShuffleDown:
        case Collective::ShuffleXor:
            for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
                Thread& t = lanes[__builtin_ctz(rest)];
                const int source = source_lane(t.request, t.lane);
                /* From a lane outside the mask the device gives anything: here NaN, or -1. */
                t.request.result = (mask >> source & 1u) != 0 ? lanes[source].request.value : ~uint64_t(0);
            }
            return;
        case Collective::Ballot:
        case Collective::Any:
        case Collective::All: {
            unsigned votes = 0;
            for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
                const int lane = __builtin_ctz(rest);
                votes |= unsigned(lanes[lane].request.value) << lane;
            }
            common = kind == Collective::Ballot ? votes : kind == Collective::Any ? votes != 0 : votes == mask;
            break;
        }
        case Collective::Add:
        case Collective::AddSigned: common = fold<uint32_t>(lanes, mask, [](auto a, auto b) { return a + b; }); break;
        case Collective::Min: common = fold<uint32_t>(lanes, mask, [](auto a, auto b) { return min(a, b); }); break;
        case Collective::MinSigned:
            common = fold<int32_t>(lanes, mask, [](auto a, auto b) { return min(a, b); });
            break;
        case Collective::Max: common = fold<uint32_t>(lanes, mask, [](auto a, auto b) { return max(a, b); }); break;
        case Collective::MaxSigned:
            common = fold<int32_t>(lanes, mask, [](auto a, auto b) { return max(a, b); });
            break;
        case Collective::And: common = fold<uint32_t>(lanes, mask, [](auto a, auto b) { return a & b; }); break;
        case Collective::Or: common = fold<uint32_t>(lanes, mask, [](auto a, auto b) { return a | b; }); break;
        case Collective::Xor: common = fold<uint32_t>(lanes, mask, [](auto a, auto b) { return a ^ b; }); break;
        case Collective::Active: common = mask; break;
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        lanes[__builtin_ctz(rest)].request.result = common;
    }
}

Thread* lanes_of(Device& d, int warp) { return &d.threads[size_t(warp * kWarp)]; }

/* Lanes that the mask names and the block has. */
unsigned named(const Device& d, const Thread& t) { return t.request.mask & d.warps[t.warp].exists; }

bool same_call(const Thread& a, const Thread& b) {
    return b.state == State::InCollective && a.request.kind == b.request.kind && a.request.mask == b.request.mask &&
           a.request.bytes == b.request.bytes;
}

void release(Device& d, int warp, unsigned mask) {
    Thread* lanes = lanes_of(d, warp);
    complete(d, lanes, warp, mask);
    d.warps[warp].waiting &= ~mask;
    d.warps[warp].ready |= mask;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        lanes[__builtin_ctz(rest)].state = State::Ready;
    }
}

}  // namespace

uint64_t take_part(Collective kind, unsigned mask, uint64_t value, size_t bytes, int parameter, int width,
                   Place place) {
    Device& d = device();
    Thread& t = running();
    Warp& warp = d.warps[t.warp];
    t.state = State::InCollective;
    t.place = place;
    t.request = {kind, mask, bytes, parameter, width, value, 0};
    if (kind != Collective::Active && (mask >> t.lane & 1u) == 0) {
        fault(text("%s, but the mask does not name its own lane %d", doing(t).c_str(), t.lane));
    }
    if (width < 1 || width > kWarp || (width & (width - 1)) != 0) {
        fault(text("%s, width %d: allowed: 1, 2, 4, 8, 16, 32", doing(t).c_str(), width));
    }
    warp.waiting |= 1u << t.lane;
    const unsigned all = named(d, t);
    bool last = kind != Collective::Active && (warp.waiting & all) == all;
    for (unsigned rest = all; rest != 0 && last; rest &= rest - 1) {
        last = same_call(t, lanes_of(d, t.warp)[__builtin_ctz(rest)]);
    }
    if (last) {  // goes on without a switch
        release(d, t.warp, all);
        warp.ready &= ~(1u << t.lane);
    } else {
        pause();
    }
    return t.request.result;
}

/* ---- The scheduler ---------------------------------------------------------------------------------------------- */

namespace {

void run_fibre() {
    Device& d = device();
    Thread& t = running();
    d.launch.body(d.launch.context);
    t.state = State::Exited;
    d.alive -= 1;
    pause();
    std::abort();
}

void resume(Device& d, Thread& t) {
    current = &t;
    switch_fibre(d.scheduler, t.context);
    current = nullptr;
    if (!d.stacks.intact(t.id)) {
        record_fault(t, text("needs more than the %zu bytes of its stack", Stacks::kBytes));
    }
}

/* __activemask: the lanes that came to the same place before the warp could do nothing else. */
bool release_active(Device& d, int warp) {
    Thread* lanes = lanes_of(d, warp);
    unsigned group = 0;
    int line = 0;
    for (unsigned rest = d.warps[warp].waiting; rest != 0; rest &= rest - 1) {
        const Thread& t = lanes[__builtin_ctz(rest)];
        if (t.request.kind == Collective::Active && (group == 0 || t.place.line == line)) {
            group |= 1u << t.lane;
            line = t.place.line;
        }
    }
    if (group != 0) {
        release(d, warp, group);
    }
    return group != 0;
}

bool same_barrier(const Thread& a, const Thread& b) {
    return b.state == State::AtBarrier && a.barrier == b.barrier && a.place.line == b.place.line &&
           std::strcmp(a.place.file, b.place.file) == 0;
}

/* Nothing can run: lets all go on when they are at one barrier, else finds out why not. */
void release_block(Device& d) {
    const int count = d.thread_count();
    for (int k = 0; k < count; ++k) {
        const Thread& t = d.threads[size_t(k)];
        if (t.state != State::InCollective) {
            continue;
        }
        for (unsigned rest = named(d, t); rest != 0; rest &= rest - 1) {
            const Thread& other = lanes_of(d, t.warp)[__builtin_ctz(rest)];
            if (!same_call(t, other)) {
                return record_fault(t, text("%s, but lane %d, thread %s, %s", doing(t).c_str(), other.lane,
                                            triple(other.index).c_str(), doing(other).c_str()));
            }
        }
    }
    const Thread* first = nullptr;
    for (int k = 0; k < count && first == nullptr; ++k) {
        first = d.threads[size_t(k)].state == State::AtBarrier ? &d.threads[size_t(k)] : nullptr;
    }
    int votes = 0;
    for (int k = 0; k < count; ++k) {
        const Thread& t = d.threads[size_t(k)];
        if (!same_barrier(*first, t)) {
            return record_fault(
                *first, text("%s, but thread %s %s", doing(*first).c_str(), triple(t.index).c_str(), doing(t).c_str()));
        }
        votes += t.predicate ? 1 : 0;
    }
    const int result = first->barrier == Barrier::Or    ? votes > 0
                       : first->barrier == Barrier::And ? votes == count
                                                        : votes;
    for (int k = 0; k < count; ++k) {
        d.threads[size_t(k)].state = State::Ready;
        d.threads[size_t(k)].result = result;
    }
    for (int w = 0; w * kWarp < count; ++w) {
        d.warps[w].ready = d.warps[w].exists;
    }
    d.epoch += 1;
}

void prepare_block(Device& d, uint3 block_index) {
    const int count = d.thread_count();
    const dim3 size = d.launch.block;
    d.indices.block_index = block_index;
    d.alive = count;
    for (int k = 0; k < count; ++k) {
        Thread& t = d.threads[size_t(k)];
        t.index = {unsigned(k) % size.x, unsigned(k) / size.x % size.y, unsigned(k) / size.x / size.y};
        t.block = &d.indices;
        t.id = k;
        t.warp = k / kWarp;
        t.lane = k % kWarp;
        t.state = State::Ready;
        prepare(t.context, d.stacks.stack(k), Stacks::kBytes, run_fibre);
    }
    for (int w = 0; w * kWarp < count; ++w) {
        const int lanes = min(count - w * kWarp, kWarp);
        const unsigned exists = lanes == kWarp ? ~0u : (1u << lanes) - 1;
        d.warps[w] = {exists, exists, 0};
    }
    d.begin_memory();
}

void run_block(Device& d) {
    const int warps = (d.thread_count() + kWarp - 1) / kWarp;
    while (!d.failed) {
        for (int w = 0; w < warps; ++w) {
            do {
                while (d.warps[w].ready != 0) {
                    const int lane = __builtin_ctz(d.warps[w].ready);
                    d.warps[w].ready &= ~(1u << lane);
                    resume(d, lanes_of(d, w)[lane]);
                    if (d.failed) {
                        return;
                    }
                }
            } while (release_active(d, w));
        }
        if (d.alive == 0) {
            return;
        }
        release_block(d);
    }
}

/* As cudaLaunchKernel would: what is wrong with a launch, or cudaSuccess. */
cudaError_t refusal(const Launch& launch, const void* kernel, std::string& why) {
    const dim3 g = launch.grid, b = launch.block;
    const uint64_t threads = uint64_t(b.x) * b.y * b.z;
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
        why = "a grid of " + triple(g) + " blocks: allowed: 1 to 2147483647, 65535 and 65535";
        return cudaErrorInvalidConfiguration;
    }
    if (threads == 0 || threads > uint64_t(kMaxThreads) || b.x > 1024 || b.y > 1024 || b.z > 64) {
        why = "a block of " + triple(b) + " threads: allowed: 1 to 1024, 1024 and 64, and 1024 in all";
        return cudaErrorInvalidConfiguration;
    }
    if (launch.shared_bytes > dynamic_limit(kernel)) {
        why = text("%zu bytes of dynamic shared memory: allowed: %zu", launch.shared_bytes, dynamic_limit(kernel));
        if (launch.shared_bytes <= kLargestShared) {
            why += text(", and up to %zu after cudaFuncSetAttribute", kLargestShared);
        }
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

/* EQCONV_EMULATION, read at each launch. */
bool wants_checks(bool& understood) {
    const char* mode = std::getenv("EQCONV_EMULATION");
    const bool fast = mode != nullptr && std::strcmp(mode, "fast") == 0;
    understood = mode == nullptr || *mode == '\0' || fast || std::strcmp(mode, "checked") == 0;
    return !fast;
}

}  // namespace

void run_grid(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
              void* context) {
    if (current != nullptr) {
        fault("launches a kernel, which the emulated device does not do from within one");
    }
    Device& d = device();
    d.launch = {name, grid, block, shared_bytes, body, context};
    if (last_error == cudaSuccess) {
        report.clear();
    }
    std::string why;
    cudaError_t error = refusal(d.launch, kernel, why);
    bool understood;
    d.checked = wants_checks(understood);
    if (!understood) {
        why = std::string("EQCONV_EMULATION is '") + std::getenv("EQCONV_EMULATION") + "': allowed: checked, fast";
        error = cudaErrorInvalidValue;
    } else if (!d.stacks.available()) {
        why = "no memory for the stacks of the threads";
        error = cudaErrorMemoryAllocation;
    }
    if (error != cudaSuccess) {
        report = "kernel " + plain_name(name) + ": " + why;
        last_error = error;
        return;
    }
    d.failed = false;
    d.unwritten = unwritten_regions();
    d.indices.block_size = block;
    d.indices.grid_size = grid;
    for (int k = 0; k < d.thread_count(); ++k) {
        d.stacks.seal(k);
    }
    for (unsigned z = 0; z < grid.z && !d.failed; ++z) {
        for (unsigned y = 0; y < grid.y && !d.failed; ++y) {
            for (unsigned x = 0; x < grid.x && !d.failed; ++x) {
                prepare_block(d, {x, y, z});
                run_block(d);
            }
        }
    }
    d.unwritten.clear();
    if (d.failed) {
        last_error = cudaErrorLaunchFailure;
    }
}

}  // namespace eqc_emulation

extern "C" const char* eqc_emulation_report(void) { return eqc_emulation::report.c_str(); }
