/* Numbers of cells to numbers of rows. */
#ifndef EQC_BLOCK_SPARSE_LOOKUP_H
#define EQC_BLOCK_SPARSE_LOOKUP_H

#include "../common/parallel.h"
#include "windows.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

constexpr int64_t most_cells = int64_t(1) << 26;

/* One number a cell, -1 where there is no row. */
class DenseMap {
   public:
    DenseMap(int64_t cells, Arena& arena) : cells_(cells), rows_(arena.take<int32_t>(cells)) {}

    void clear(int threads) const {
        constexpr int64_t piece = 65536;
        parallel_for(threads, (cells_ + piece - 1) / piece, [&](int64_t item, int) {
            std::memset(rows_ + item * piece, 0xff, size_t(smaller(piece, cells_ - item * piece)) * sizeof(int32_t));
        });
    }
    void insert(int64_t cell, int32_t row) const { __atomic_store_n(rows_ + cell, row, __ATOMIC_RELAXED); }
    EQC_INLINE int32_t find(int64_t cell) const { return rows_[cell]; }
    EQC_INLINE void prefetch(int64_t) const {}
    const int32_t* rows() const { return rows_; }

   private:
    int64_t cells_;
    int32_t* rows_;
};

/* Open addressing with places for twice as many cells. Four neighbours along the last axis share a cache line. */
class HashMap {
   public:
    HashMap(int64_t most, Arena& arena) {
        while (places_ < 2 * most) places_ *= 2;
        entries_ = arena.take<Entry>(places_);
    }

    void clear(int threads) const {
        constexpr int64_t piece = 16384;
        parallel_for(threads, (places_ + piece - 1) / piece, [&](int64_t item, int) {
            for (int64_t k = item * piece; k < smaller(places_, (item + 1) * piece); ++k) entries_[k].cell = nothing;
        });
    }
    /* May be called by several threads; whether the cell was not there yet. */
    bool insert(int64_t cell, int32_t row) const {
        for (int64_t place = start(cell);; place = (place + 1) & (places_ - 1)) {
            Entry& entry = entries_[place];
            int64_t found = __atomic_load_n(&entry.cell, __ATOMIC_RELAXED);
            const bool mine = found == nothing && __atomic_compare_exchange_n(&entry.cell, &found, cell, false,
                                                                              __ATOMIC_RELAXED, __ATOMIC_RELAXED);
            if (!mine && found != cell) continue;
            if (mine) __atomic_store_n(&entry.row, row, __ATOMIC_RELAXED);
            return mine;
        }
    }
    EQC_INLINE int32_t find(int64_t cell) const {
        for (int64_t place = start(cell);; place = (place + 1) & (places_ - 1)) {
            if (entries_[place].cell == cell) return int32_t(entries_[place].row);
            if (entries_[place].cell == nothing) return -1;
        }
    }
    EQC_INLINE void prefetch(int64_t cell) const { __builtin_prefetch(entries_ + start(cell)); }

    /* Calls body(cell) for every cell, in the order of the places. */
    template <class Body>
    void for_cells(const Body& body) const {
        for (int64_t k = 0; k < places_; ++k)
            if (entries_[k].cell != nothing) body(entries_[k].cell);
    }

   private:
    static constexpr int64_t nothing = -1;
    struct Entry {
        int64_t cell, row;
    };

    EQC_INLINE int64_t start(int64_t cell) const {
        uint64_t mixed = uint64_t(cell) >> 2;
        mixed = (mixed ^ mixed >> 32) * 0x9e3779b97f4a7c15u;
        mixed = (mixed ^ mixed >> 29) * 0xbf58476d1ce4e5b9u;
        return int64_t(((mixed ^ mixed >> 32) << 2 | (uint64_t(cell) & 3)) & uint64_t(places_ - 1));
    }

    int64_t places_ = 16;
    Entry* entries_;
};

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
