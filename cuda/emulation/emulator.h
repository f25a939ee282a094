/* The insides of the emulated device: what emulator.cpp, memory.cpp and runtime.cpp share. */
#ifndef EQC_EMULATION_EMULATOR_H
#define EQC_EMULATION_EMULATOR_H

#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fibre.h"

namespace eqc_emulation {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr size_t kStaticShared = 48 * 1024;    // of a block's arrays, and of dynamic shared memory unless asked for
constexpr size_t kLargestShared = 227 * 1024;  // of a block in all
constexpr size_t kMultiprocessorShared = 228 * 1024;
constexpr int kMaxRegions = 64;
constexpr int kUnwrittenByte = 0xff;  // NaN in every floating-point type, -1 in every integer

/* ---- Who has touched a word, or a byte, of shared memory -------------------------------------------------------- */

/* Two accesses by different threads, not both reads and not both atomic, need one of these between them:
 *   - a barrier of the block: `epoch` counts them, on and on over all blocks, so that nothing has to be cleared;
 *   - in one warp a __syncwarp that names both lanes: the warp's `serial` counts those.
 * The last writer is enough of the past, since an earlier one was ordered before it or reported. Of the readers since
 * then, those of one warp that no __syncwarp has put in order are kept, and one of another warp. */
struct Cell {
    uint32_t write_epoch;  // 0: never
    uint32_t write_serial;
    uint32_t read_epoch;
    uint32_t read_serial;
    uint32_t readers;  // lanes of reader_warp
    uint16_t writer;
    uint16_t other_atomic;  // 1 + a thread whose atomic operation is not ordered with the writer's; 0: none
    uint16_t other_reader;  // 1 + a reader outside reader_warp; 0: none
    uint8_t reader_warp;
    bool atomic;     // the last write was
    uint32_t split;  // the block in which the word's history went on in the cells of its bytes
};

/* What __syncwarp has put in order: lane a comes after what lane b did at serial s when full > s or known[a][b] > s. */
struct WarpOrder {
    uint32_t serial;
    uint32_t full;  // the last event of all lanes
    uint32_t known[kWarp][kWarp];
};

/* ---- Threads ---------------------------------------------------------------------------------------------------- */

enum class State { Ready, AtBarrier, InCollective, Exited };

struct Request {
    Collective kind;
    unsigned mask;
    size_t bytes;
    int parameter;
    int width;
    uint64_t value;
    uint64_t result;
};

struct Thread : ThreadIndices {
    int id;
    int warp;
    int lane;
    State state;
    Place place;  // of the barrier or collective that it waits at
    Barrier barrier;
    bool predicate;
    int result;
    Request request;
    Context context;
};

/* Sets of lanes. */
struct Warp {
    unsigned exists;
    unsigned ready;
    unsigned waiting;  // in a collective
};

struct Launch {
    const char* name;
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
    Body body;
    void* context;
};

struct Unwritten {
    const char* begin;
    size_t bytes;
    std::vector<uint8_t> written;  // a byte for a byte: it is found sooner than a bit
};
using UnwrittenList = std::vector<std::shared_ptr<Unwritten>>;
UnwrittenList unwritten_regions();
void set_written(const void* begin, size_t bytes);

/* One for each thread of the host that launches, made at its first launch. */
struct Device {
    Device();

    Stacks stacks;
    std::vector<Thread> threads;
    Warp warps[kMaxThreads / kWarp];
    Context scheduler;
    BlockIndices indices;
    Launch launch;
    int alive;
    bool failed;
    bool checked;

    std::unique_ptr<char[]> arena;  // the block's shared memory: dynamic, then the arrays
    char* shared;                   // its beginning, aligned
    size_t shared_used;
    SharedRegion regions[kMaxRegions];  // the first is dynamic shared memory
    int region_count;
    std::vector<Cell> words;
    std::vector<Cell> bytes;  // made when the first access smaller than a word comes
    std::vector<WarpOrder> order;
    uint32_t epoch;
    uint32_t first_epoch;  // of the block
    UnwrittenList unwritten;

    int thread_count() const { return int(launch.block.x * launch.block.y * launch.block.z); }
    void begin_memory();  // of a block
};

extern thread_local std::string report;
extern thread_local cudaError_t last_error;

inline Thread& running() { return *static_cast<Thread*>(current); }
Device& device();
size_t dynamic_limit(const void* kernel);
void synchronize_lanes(WarpOrder& order, unsigned lanes, unsigned exists);

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string thread_name(int id);
/* Reports what `thread` did, and stops the grid. The second ends the running fibre, too. */
void record_fault(const Thread& thread, const std::string& what);
[[noreturn]] void fault(const std::string& what);

}  // namespace eqc_emulation

#endif
