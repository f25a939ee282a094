/* The compiled cores as a binding sees them: shared libraries opened at run time, one for each place to compute.
 *
 * A binding does not link a core, so one binding serves all of them, and each can be rebuilt alone. Every Operation
 * enters itself in a list; opening a core looks up the functions of all of them.
 */
#ifndef EQC_CORES_H
#define EQC_CORES_H

#include <dlfcn.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../common/contract.h"

namespace eqc {

enum Place { CPU, CUDA, EMULATED, PLACES };

inline const char* name_of(Place place) {
    static const char* const names[PLACES] = {"cpu", "cuda", "emulated"};
    return names[place];
}

class AnyOperation;

inline std::vector<AnyOperation*>& operations() {
    static std::vector<AnyOperation*> all;
    return all;
}

/* What only the emulated core has: where it tells what it found wrong, and how it is told which memory nobody has
 * written. */
struct Emulator {
    std::atomic<const char* (*)()> report{nullptr};
    std::atomic<void (*)(void*, size_t)> mark_unwritten{nullptr};
    std::atomic<void (*)(const void*, size_t)> mark_written{nullptr};

    void find(void* library) {
        report.store(reinterpret_cast<const char* (*)()>(dlsym(library, "eqc_emulation_report")));
        mark_unwritten.store(reinterpret_cast<void (*)(void*, size_t)>(dlsym(library, "eqc_mark_unwritten")));
        mark_written.store(reinterpret_cast<void (*)(const void*, size_t)>(dlsym(library, "eqc_mark_written")));
    }
};

inline Emulator& emulator() {
    static Emulator its;
    return its;
}

/* How the core for the CPU is told whose threads to take. */
inline std::atomic<void (*)(eqc_lend)>& borrow_threads() {
    static std::atomic<void (*)(eqc_lend)> its{nullptr};
    return its;
}

/* While it lives, the operations that this thread runs on the CPU compute on threads that are lent to them. */
class Lending {
  public:
    Lending(Place place, eqc_lend lend) : borrow_(place == CPU ? borrow_threads().load() : nullptr) {
        if (borrow_ != nullptr) borrow_(lend);
    }
    Lending(const Lending&) = delete;
    Lending& operator=(const Lending&) = delete;
    ~Lending() {
        if (borrow_ != nullptr) borrow_(nullptr);
    }

  private:
    void (*borrow_)(eqc_lend);
};

/* Looks up the functions of one operation in an opened core. */
class AnyOperation {
  public:
    explicit AnyOperation(const char* name) : name_(name) { operations().push_back(this); }
    AnyOperation(const AnyOperation&) = delete;
    AnyOperation& operator=(const AnyOperation&) = delete;

    void find(Place place, void* library) {
        for (int wide = 0; wide < 2; ++wide) {
            const std::string symbol = std::string("eqc_") + name_ + (wide ? "_f64" : "_f32");
            run_[place][wide].store(dlsym(library, symbol.c_str()));
            workspace_[place][wide].store(dlsym(library, (symbol + "_workspace").c_str()));
        }
    }

    const char* name() const { return name_; }

    bool present(Place place, bool wide) const {
        return run_[place][wide].load() != nullptr && workspace_[place][wide].load() != nullptr;
    }

  protected:
    std::atomic<void*> run_[PLACES][2] = {};
    std::atomic<void*> workspace_[PLACES][2] = {};

  private:
    const char* name_;
};

/* An operation of the contract, see EQC_OPERATION; `wide` chooses double. */
template <typename Arguments>
class Operation : public AnyOperation {
  public:
    using AnyOperation::AnyOperation;

    size_t workspace(Place place, bool wide, const Arguments& arguments) const {
        return reinterpret_cast<size_t (*)(const Arguments*)>(workspace_[place][wide].load())(&arguments);
    }

    /* `bytes` of workspace; the emulated core reports a read of them before a write. */
    int run(Place place, bool wide, const Arguments& arguments, void* workspace, size_t bytes, void* stream) const {
        using Run = int (*)(const Arguments*, void*, void*);
        const auto mark_unwritten = place == EMULATED ? emulator().mark_unwritten.load() : nullptr;
        const auto mark_written = place == EMULATED ? emulator().mark_written.load() : nullptr;
        if (mark_unwritten != nullptr) mark_unwritten(workspace, bytes);
        const int status = reinterpret_cast<Run>(run_[place][wide].load())(&arguments, workspace, stream);
        if (mark_written != nullptr) mark_written(workspace, bytes);
        return status;
    }
};

/* Asks for large pages under fresh memory of the CPU: touching it for the first time then costs a third. */
inline void prefer_large_pages(void* memory, size_t bytes) {
#ifdef __linux__
    const uintptr_t page = uintptr_t(2) << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
    if (bytes >= 4 * page) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

/* What to tell when an operation is not in the place it is asked of. */
inline std::string absent(const char* operation, Place place) {
    return std::string("eqconv: no core for '") + name_of(place) + "' with the operation " + operation +
           " is loaded (eqconv build-kernels --target " + name_of(place) + ")";
}

/* What to tell about a status other than EQC_OK. */
inline std::string fault(const char* operation, Place place, int status) {
    const std::string where = std::string("eqconv: ") + operation + " on " + name_of(place) + ": ";
    if (status >= EQC_CUDA_ERROR) return where + "CUDA error " + std::to_string(status - EQC_CUDA_ERROR);
    if (status == EQC_BAD_ARGUMENT) return where + "a needed array is missing or a size is impossible";
    if (status == EQC_UNSUPPORTED) return where + "this request is not supported by this build of the core";
    if (status == EQC_EMULATION_FAULT) {
        const auto report = emulator().report.load();
        return where + "the emulated device found a fault: " + (report ? report() : "no report");
    }
    return where + "status " + std::to_string(status);
}

}  // namespace eqc

/* Why the last eqc_open_core of this thread failed. */
EQC_API const char* eqc_open_core_error();

/* Opens a core for "cpu", "cuda" or "emulated" and keeps the table of its functions; 0 when that worked. */
EQC_API int eqc_open_core(const char* device, const char* path);

/* To be expanded once in each binding. */
#define EQC_DEFINE_OPEN_CORE()                                                                                  \
    static thread_local std::string eqc_last_error;                                                             \
    const char* eqc_open_core_error() { return eqc_last_error.c_str(); }                                        \
    int eqc_open_core(const char* device, const char* path) {                                                   \
        for (int place = 0; place < eqc::PLACES; ++place) {                                                     \
            if (std::strcmp(device, eqc::name_of(eqc::Place(place))) != 0) continue;                            \
            void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);                                                \
            if (library == nullptr) {                                                                           \
                const char* why = dlerror();                                                                    \
                eqc_last_error = why ? why : "dlopen failed";                                                   \
                return 1;                                                                                       \
            }                                                                                                   \
            for (eqc::AnyOperation* operation : eqc::operations()) operation->find(eqc::Place(place), library); \
            if (place == eqc::EMULATED) eqc::emulator().find(library);                                          \
            if (place == eqc::CPU)                                                                              \
                eqc::borrow_threads().store(                                                                    \
                    reinterpret_cast<void (*)(eqc_lend)>(dlsym(library, "eqc_borrow_threads")));                \
            return 0;                                                                                           \
        }                                                                                                       \
        eqc_last_error = std::string("device '") + device + "' is unknown: allowed: cpu, cuda, emulated";       \
        return 1;                                                                                               \
    }

#endif
