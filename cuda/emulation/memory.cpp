/* The memory of the emulated device: the shared arrays of a block and who has touched them, and global memory that has
 * not been written yet. */
#include <algorithm>
#include <mutex>

#include "emulator.h"

namespace eqc_emulation {

namespace {

const char* verb(Access access) {
    return access == Access::Read ? "reads" : access == Access::Write ? "writes" : "changes atomically";
}

std::string element_name(const SharedRegion& region, const void* at, size_t element) {
    const ptrdiff_t offset = static_cast<const char*>(at) - region.begin;
    if (region.site == nullptr) {
        return text("byte %td of dynamic shared memory", offset);
    }
    return text("element %td of the shared array %s", offset / ptrdiff_t(element), region.name);
}

/* An access that is about to happen, for the cells that it touches. */
struct Visit {
    const Device& device;
    const Thread& thread;
    const WarpOrder& order;
    const SharedRegion& region;
    Access access;
    const void* at;
    size_t element;

    [[noreturn]] void race(const char* past, int other) const {
        fault(text("%s %s, which thread %s %s with no barrier between the two", verb(access),
                   element_name(region, at, element).c_str(), thread_name(other).c_str(), past));
    }
    bool ordered(int lane, uint32_t serial) const {
        return order.full > serial || order.known[thread.lane][lane] > serial;
    }
    /* Whether a thread's access in this epoch can happen at the same time as this one. */
    bool concurrent(int other, uint32_t serial) const {
        return other != thread.id && (other / kWarp != thread.warp || !ordered(other % kWarp, serial));
    }

    void check_writers(const Cell& cell) const {
        if (cell.write_epoch != device.epoch || (cell.atomic && access == Access::Atomic)) {
            return;
        }
        const char* past = cell.atomic ? "changed atomically" : "wrote";
        if (concurrent(cell.writer, cell.write_serial)) {
            race(past, cell.writer);
        }
        if (cell.other_atomic != 0 && concurrent(cell.other_atomic - 1, cell.write_serial)) {
            race(past, cell.other_atomic - 1);
        }
    }
    void check_readers(const Cell& cell) const {
        if (cell.read_epoch != device.epoch) {
            return;
        }
        for (unsigned lanes = cell.readers; lanes != 0; lanes &= lanes - 1) {
            const int reader = cell.reader_warp * kWarp + __builtin_ctz(lanes);
            if (concurrent(reader, cell.read_serial)) {
                race("read", reader);
            }
        }
        if (cell.other_reader != 0 && concurrent(cell.other_reader - 1, cell.read_serial)) {
            race("read", cell.other_reader - 1);
        }
    }

    void read(Cell& cell) const {
        if (cell.write_epoch < device.first_epoch) {
            fault(
                text("reads %s, which no thread of the block has written", element_name(region, at, element).c_str()));
        }
        check_writers(cell);
        const unsigned lane = 1u << thread.lane;
        if (cell.read_epoch != device.epoch) {
            cell.read_epoch = device.epoch;
            cell.readers = lane;
            cell.other_reader = 0;
        } else if (cell.reader_warp != thread.warp) {
            cell.other_reader = uint16_t(1 + cell.reader_warp * kWarp + __builtin_ctz(cell.readers));
            cell.readers = lane;
        } else {
            if (cell.read_serial != order.serial) {  // forget the lanes whose reads came before this one
                for (unsigned lanes = cell.readers; lanes != 0; lanes &= lanes - 1) {
                    if (ordered(__builtin_ctz(lanes), cell.read_serial)) {
                        cell.readers &= ~(lanes & -lanes);
                    }
                }
            }
            cell.readers |= lane;
        }
        cell.reader_warp = uint8_t(thread.warp);
        cell.read_serial = order.serial;
    }

    /* `same`: the bits are there already. Threads that all write the same value do no harm, and kernels do so. */
    void write(Cell& cell, bool same) const {
        if (!same || cell.atomic) {
            check_writers(cell);
        }
        check_readers(cell);
        wrote(cell, 0);
    }
    void change(Cell& cell) const {
        if (cell.write_epoch < device.first_epoch) {
            fault(text("changes atomically %s, which no thread of the block has written",
                       element_name(region, at, element).c_str()));
        }
        check_writers(cell);
        check_readers(cell);
        int other = 0;
        if (cell.write_epoch == device.epoch && cell.atomic) {
            /* Rather one of another warp, since only a barrier puts that in order with this one. */
            const int kept = cell.other_atomic;
            const bool unordered = concurrent(cell.writer, cell.write_serial);
            other = kept != 0 && (!unordered || (kept - 1) / kWarp != thread.warp) ? kept
                    : unordered                                                    ? 1 + cell.writer
                                                                                   : 0;
        }
        wrote(cell, other);
        cell.atomic = true;
    }
    void wrote(Cell& cell, int other_atomic) const {
        cell.write_epoch = device.epoch;
        cell.write_serial = order.serial;
        cell.writer = uint16_t(thread.id);
        cell.other_atomic = uint16_t(other_atomic);
        cell.atomic = false;
        cell.read_epoch = 0;  // what they read is ordered before this write, and so before all that follows it
    }

    void operator()(Cell& cell, bool same) const {
        switch (access) {
            case Access::Read: return read(cell);
            case Access::Write: return write(cell, same);
            case Access::Atomic: return change(cell);
        }
    }
};

bool same_bits_at(const char* at, const char* value, size_t bytes) {
    return value != nullptr && std::memcmp(at, value, bytes) == 0;
}

/* From an access smaller than a word on, the word's history of this block is that of its bytes. */
Cell* bytes_of(Device& d, size_t word) {
    if (d.bytes.empty()) {
        d.bytes.resize(4 * d.words.size());
    }
    Cell* cells = &d.bytes[4 * word];
    if (d.words[word].split != d.first_epoch) {
        d.words[word].split = d.first_epoch;
        std::fill(cells, cells + 4, d.words[word]);
    }
    return cells;
}

}  // namespace

void check_shared(const SharedRegion& region, const void* at, size_t bytes, Access access, const void* value,
                  size_t element) {
    const size_t offset = size_t(static_cast<const char*>(at) - region.begin);
    if (offset > region.bytes || bytes > region.bytes - offset) {
        fault(region.site == nullptr ? text("%s %s, which has %zu bytes", verb(access),
                                            element_name(region, at, element).c_str(), region.bytes)
                                     : text("%s %s, which has %zu", verb(access),
                                            element_name(region, at, element).c_str(), region.bytes / element));
    }
    Device& d = device();
    if (!region.watched || !d.checked) {
        return;
    }
    const Thread& thread = running();
    const Visit visit{d, thread, d.order[size_t(thread.warp)], region, access, at, element};
    const size_t begin = size_t(static_cast<const char*>(at) - d.shared);
    const char* old = static_cast<const char*>(at);
    const char* fresh = static_cast<const char*>(value);
    for (size_t i = 0; i < bytes;) {
        const size_t word = (begin + i) / 4;
        const bool whole = (begin + i) % 4 == 0 && bytes - i >= 4;
        if (whole && d.words[word].split != d.first_epoch) {
            visit(d.words[word], same_bits_at(old + i, fresh == nullptr ? nullptr : fresh + i, 4));
            i += 4;
        } else {
            visit(bytes_of(d, word)[(begin + i) % 4], same_bits_at(old + i, fresh == nullptr ? nullptr : fresh + i, 1));
            i += 1;
        }
    }
}

void synchronize_lanes(WarpOrder& order, unsigned lanes, unsigned exists) {
    order.serial += 1;
    if (lanes == exists) {
        order.full = order.serial;
        return;
    }
    uint32_t joint[kWarp] = {};
    for (int a = 0; a < kWarp; ++a) {
        if ((lanes >> a & 1u) != 0) {
            for (int b = 0; b < kWarp; ++b) {
                joint[b] = std::max(joint[b], order.known[a][b]);
            }
        }
    }
    for (int a = 0; a < kWarp; ++a) {
        joint[a] = (lanes >> a & 1u) != 0 ? order.serial : joint[a];
    }
    for (int a = 0; a < kWarp; ++a) {
        if ((lanes >> a & 1u) != 0) {
            std::copy(joint, joint + kWarp, order.known[a]);
        }
    }
}

/* ---- The arrays of a block -------------------------------------------------------------------------------------- */

void Device::begin_memory() {
    epoch += 1;
    if (epoch > 0xf0000000u) {  // long before the counters wrap
        std::fill(words.begin(), words.end(), Cell{});
        std::fill(bytes.begin(), bytes.end(), Cell{});
        epoch = 1;
    }
    for (WarpOrder& its : order) {
        if (its.serial > 0xf0000000u) {
            its = WarpOrder{};
            std::fill(words.begin(), words.end(), Cell{});
            std::fill(bytes.begin(), bytes.end(), Cell{});
        }
    }
    first_epoch = epoch;
    shared_used = launch.shared_bytes;
    std::memset(shared, kUnwrittenByte, launch.shared_bytes);
    regions[0] = {nullptr, nullptr, shared, launch.shared_bytes, true};
    region_count = 1;
}

namespace {

/* The region of a site, or a new one that the caller completes. */
SharedRegion* region_of(Device& d, const void* site, bool& found) {
    for (int i = 1; i < d.region_count; ++i) {
        if (d.regions[i].site == site) {
            found = true;
            return &d.regions[i];
        }
    }
    if (d.region_count == kMaxRegions) {
        fault(text("has more than %d shared arrays", kMaxRegions - 1));
    }
    found = false;
    return &d.regions[d.region_count++];
}

}  // namespace

const SharedRegion* dynamic_region(size_t byte_offset, size_t alignment) {
    if (byte_offset % alignment != 0) {
        fault(text("takes dynamic shared memory from byte %zu on, which is not a multiple of %zu", byte_offset,
                   alignment));
    }
    return &device().regions[0];
}

const SharedRegion* static_region(const void* site, const char* name, size_t bytes, size_t alignment) {
    Device& d = device();
    bool found;
    SharedRegion* region = region_of(d, site, found);
    if (!found) {
        /* A word between two arrays keeps their cells apart. */
        const size_t begin = (d.shared_used + 4 + std::max<size_t>(alignment, 16) - 1) /
                             std::max<size_t>(alignment, 16) * std::max<size_t>(alignment, 16);
        size_t total = d.launch.shared_bytes + bytes;
        size_t arrays = bytes;
        for (int i = 1; i < d.region_count - 1; ++i) {
            total += d.regions[i].bytes;
            arrays += d.regions[i].bytes;
        }
        if (arrays > kStaticShared || total > kLargestShared) {
            fault(text("needs %zu bytes of shared arrays and %zu of dynamic: allowed: %zu, and %zu in all", arrays,
                       d.launch.shared_bytes, kStaticShared, kLargestShared));
        }
        *region = {site, name, d.shared + begin, bytes, true};
        std::memset(region->begin, kUnwrittenByte, bytes);
        d.shared_used = begin + bytes;
    }
    return region;
}

const SharedRegion* plain_region(const void* array, size_t bytes) {
    bool found;
    SharedRegion* region = region_of(device(), array, found);
    *region = {array, "(of EQC_SHARED)", static_cast<char*>(const_cast<void*>(array)), bytes, false};
    return region;
}

/* ---- Global memory ---------------------------------------------------------------------------------------------- */

namespace {
std::mutex unwritten_mutex;
UnwrittenList unwritten_list;
}  // namespace

UnwrittenList unwritten_regions() {
    const std::lock_guard<std::mutex> lock(unwritten_mutex);
    return unwritten_list;
}

void set_written(const void* begin, size_t bytes) {
    const std::lock_guard<std::mutex> lock(unwritten_mutex);
    const char* const from = static_cast<const char*>(begin);
    const auto gone = [&](const std::shared_ptr<Unwritten>& region) {
        const char* const first = std::max(from, region->begin);
        const char* const last = std::min(from + bytes, region->begin + region->bytes);
        if (first < last) {
            std::fill(region->written.begin() + (first - region->begin),
                      region->written.begin() + (last - region->begin), uint8_t(1));
        }
        return first < last && size_t(last - first) == region->bytes;
    };
    unwritten_list.erase(std::remove_if(unwritten_list.begin(), unwritten_list.end(), gone), unwritten_list.end());
}

Unwritten* find_unwritten(const void* begin, size_t bytes) {
    const char* const from = static_cast<const char*>(begin);
    for (const std::shared_ptr<Unwritten>& region : device().unwritten) {
        if (from < region->begin + region->bytes && region->begin < from + bytes) {
            return region.get();
        }
    }
    return nullptr;
}

void check_global(const char* begin, size_t extent, Unwritten* unwritten, const void* at, size_t bytes, Access access,
                  size_t element) {
    const char* const from = static_cast<const char*>(at);
    const size_t offset = size_t(from - begin);
    const ptrdiff_t index = (from - begin) / ptrdiff_t(element);
    if (offset > extent || bytes > extent - offset) {
        const size_t count = bytes / element;
        fault(begin == nullptr ? text("%s element %td of a view of NULL", verb(access), index)
              : count > 1      ? text("%s elements %td to %td of a view of %zu", verb(access), index,
                                      index + ptrdiff_t(count) - 1, extent / element)
                               : text("%s element %td of a view of %zu", verb(access), index, extent / element));
    }
    for (size_t i = 0; i < bytes; ++i) {
        const size_t k = size_t(from + i - unwritten->begin);
        if (k >= unwritten->bytes) {
            continue;
        }
        if (access == Access::Write) {
            unwritten->written[k] = 1;
        } else if (unwritten->written[k] == 0) {
            fault(text("%s element %td of a view of %zu before anything has written it", verb(access),
                       ptrdiff_t(offset + i) / ptrdiff_t(element), extent / element));
        }
    }
}

void misaligned(const void* at, size_t alignment) {
    fault(text("takes a vector of %zu bytes at an address that is %zu bytes off", alignment,
               size_t(reinterpret_cast<uintptr_t>(at) % alignment)));
}

}  // namespace eqc_emulation

extern "C" void eqc_mark_unwritten(void* pointer, size_t bytes) {
    using namespace eqc_emulation;
    if (pointer == nullptr || bytes == 0) {
        return;
    }
    set_written(pointer, bytes);  // what earlier marks say of this memory no longer counts
    std::memset(pointer, kUnwrittenByte, bytes);
    auto region = std::make_shared<Unwritten>(Unwritten{static_cast<char*>(pointer), bytes, {}});
    region->written.resize(bytes);
    const std::lock_guard<std::mutex> lock(unwritten_mutex);
    unwritten_list.push_back(std::move(region));
}

extern "C" void eqc_mark_written(const void* pointer, size_t bytes) { eqc_emulation::set_written(pointer, bytes); }
