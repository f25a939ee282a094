/* What one processor can do at most: multiply-adds in registers, and a copy through memory. */
#include "probes.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eqc {
inline namespace EQC_ISA {
namespace {

using Clock = std::chrono::steady_clock;

/* Chains that do not wait for each other. A multiply-add takes four or five cycles and two can start in each, so ten
 * are needed; with the two constants they must fit into the 16 registers that there are (32 with AVX-512). */
#if defined(EQC_ISA_AVX512)
constexpr int chains = 24;
#else
constexpr int chains = 12;
#endif

template <class T>
T multiply_add(int64_t rounds, int seed) {
    using V = typename Vector<T>::type;
    V chain[chains];
    for (int k = 0; k < chains; ++k) chain[k] = V{} + T(seed + k);
    /* Every chain tends to 1: nothing overflows, and nothing becomes denormal, which would be slow. */
    const V factor = V{} + T(0.5), addend = V{} + T(0.5);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
        for (int k = 0; k < chains; ++k) chain[k] = chain[k] * factor + addend;
    }
    T sum = 0;
    for (int k = 0; k < chains; ++k)
        for (int lane = 0; lane < Vector<T>::lanes; ++lane) sum += chain[k][lane];
    return sum;
}

template <class T>
EQC_INLINE void store_streamed(T* p, typename Vector<T>::type value) {
#if defined(EQC_ISA_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(value));
#elif defined(EQC_ISA_AVX2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(value));
#elif defined(__x86_64__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(value));
#else
    store(p, value);
#endif
}

/* Vectors [begin, end) of the arrays. */
template <class T, bool streamed>
void copy(const T* source, T* target, int64_t begin, int64_t end) {
    constexpr int64_t lanes = Vector<T>::lanes;
    for (int64_t k = begin * lanes; k < end * lanes; k += lanes) {
        const auto value = load(source + k);
        if (streamed)
            store_streamed(target + k, value);
        else
            store(target + k, value);
    }
#if defined(__x86_64__)
    if (streamed) _mm_sfence();
#endif
}

/* Runs work(thread) on every thread at the same time; the seconds from the common start to the end of the last. */
template <class Work>
double together(int threads, const Work& work) {
    std::atomic<int> absent{threads};
    std::vector<Clock::time_point> begun(static_cast<size_t>(threads)), ended(static_cast<size_t>(threads));
    /* Whoever has taken an item waits here for the others, so every thread gets exactly one. Where fewer threads come
     * than were asked for, one takes several after a while. */
    const Clock::time_point patience = Clock::now() + std::chrono::seconds(1);
    parallel_for(threads, threads, [&](int64_t item, int) {
        absent.fetch_sub(1);
        while (absent.load() > 0 && Clock::now() < patience) std::this_thread::yield();
        begun[size_t(item)] = Clock::now();
        work(int(item));
        ended[size_t(item)] = Clock::now();
    });
    Clock::time_point first = begun[0], last = ended[0];
    for (const auto& time : begun) first = time < first ? time : first;
    for (const auto& time : ended) last = time > last ? time : last;
    return std::chrono::duration<double>(last - first).count();
}

constexpr int64_t most_threads = 1 << 16;

template <class T>
size_t probe_multiply_add_workspace(const eqc_multiply_add*) {
    return 0;
}

template <class T>
int probe_multiply_add(const eqc_multiply_add* a, void*) {
    if (!a || a->rounds < 0 || a->threads < 0 || !a->flops || !a->seconds || !a->sum) return EQC_BAD_ARGUMENT;
    const int threads = thread_count(a->threads, most_threads);
    std::vector<T> sums(static_cast<size_t>(threads));
    *a->seconds = together(threads, [&](int t) { sums[size_t(t)] = multiply_add<T>(a->rounds, t); });
    *a->flops = 2.0 * chains * Vector<T>::lanes * double(a->rounds) * threads;
    T total = 0;
    for (T sum : sums) total += sum;
    *static_cast<T*>(a->sum) = total;
    return EQC_OK;
}

template <class T>
size_t probe_copy_workspace(const eqc_copy*) {
    return 0;
}

template <class T>
int probe_copy(const eqc_copy* a, void*) {
    if (!a || a->size < 0 || a->rounds < 0 || a->threads < 0) return EQC_BAD_ARGUMENT;
    if (!a->source || !a->target || !a->bytes || !a->seconds) return EQC_BAD_ARGUMENT;
    const bool streamed = a->flags & EQC_PROBE_STREAMED;
    if (streamed && a->size > 0 && reinterpret_cast<uintptr_t>(a->target) % 64 != 0) return EQC_BAD_ARGUMENT;
    const int64_t vectors = a->size / Vector<T>::lanes;
    const int threads = thread_count(a->threads, most_threads);
    const T* source = static_cast<const T*>(a->source);
    T* target = static_cast<T*>(a->target);
    for (int64_t k = vectors * Vector<T>::lanes; k < a->size; ++k) target[k] = source[k];
    *a->seconds = together(threads, [&](int t) {
        const int64_t begin = vectors * t / threads, end = vectors * (t + 1) / threads;
        for (int64_t round = 0; round < a->rounds; ++round)
            streamed ? copy<T, true>(source, target, begin, end) : copy<T, false>(source, target, begin, end);
    });
    *a->bytes = 2.0 * sizeof(T) * double(vectors * Vector<T>::lanes) * double(a->rounds);
    return EQC_OK;
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

using namespace eqc;

EQC_DEFINE(probe_multiply_add, eqc_multiply_add, probe_multiply_add)
EQC_DEFINE(probe_copy, eqc_copy, probe_copy)
