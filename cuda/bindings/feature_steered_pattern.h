/* The pattern of a feature-steered operation as one int64 array, which is cheaper to hand over than a dozen.
 *
 * Sections follow each other in the order below, each from a multiple of 8 words (64 bytes) on; int32 entries lie two
 * in a word. Which optional ones there are is told by `parts`. eqconv_cli/backends/feature_steered/schedule.py packs
 * it.
 */
#ifndef EQC_FEATURE_STEERED_PATTERN_H
#define EQC_FEATURE_STEERED_PATTERN_H

#include "../feature_steered/feature_steered.h"
#include "cores.h"

namespace eqc {

enum PatternParts {
    EDGE_OF_SLOT = 1, /* edge_of_slot */
    CHUNKS = 2,       /* chunk_rows */
    TOUCHED = 4,      /* touched_start, touched, local */
    TRANSPOSED = 8    /* colptr, row_of_position, slot_of_position */
};

struct PatternSizes {
    int64_t rows, cols, edges, chunks, touched, parts;

    bool sensible() const {
        const int64_t limit = int64_t(1) << 40;
        for (int64_t size : {rows, cols, edges, chunks, touched})
            if (size < 0 || size > limit) return false;
        return parts >= 0 && parts < 16;
    }
};

/* What a pattern lacks for an operation in some place; NULL when it lacks nothing. */
inline const char* lacking(const PatternSizes& sizes, Place place, int64_t flags, bool backward) {
    if (place == CPU && !(sizes.parts & CHUNKS)) return "the pattern was packed without the chunks that the CPU needs";
    if (place == CPU && backward && !(sizes.parts & TOUCHED))
        return "the pattern was packed without the lists of columns that gradients on the CPU need";
    if (place != CPU && backward && (flags & EQC_FS_DETERMINISTIC) && !(sizes.parts & TRANSPOSED))
        return "the pattern was packed without the order by columns that deterministic gradients need";
    return nullptr;
}

class PatternReader {
  public:
    explicit PatternReader(const int64_t* words) : words_(words) {}

    const int64_t* longs(int64_t count) { return take(count); }
    const int32_t* ints(int64_t count) { return reinterpret_cast<const int32_t*>(take((count + 1) / 2)); }
    int64_t length() const { return position_; }

  private:
    const int64_t* take(int64_t words) {
        const int64_t* section = words_ + position_;
        position_ += (words + 7) / 8 * 8;
        return section;
    }

    const int64_t* words_;
    int64_t position_ = 0;
};

/* Points the arguments at the sections of a packed pattern; returns how many words it must have at least. */
inline int64_t unpack_pattern(const int64_t* words, const PatternSizes& sizes, eqc_feature_steered& a) {
    PatternReader reader(words);
    a.rows = sizes.rows;
    a.cols = sizes.cols;
    a.edges = sizes.edges;
    a.rowptr = reader.longs(sizes.rows + 1);
    a.col = reader.ints(sizes.edges);
    if (sizes.parts & EDGE_OF_SLOT) a.edge_of_slot = reader.longs(sizes.edges);
    if (sizes.parts & CHUNKS) {
        a.chunks = sizes.chunks;
        a.chunk_rows = reader.longs(sizes.chunks + 1);
    }
    if (sizes.parts & TOUCHED) {
        a.touched_start = reader.longs(sizes.chunks + 1);
        a.touched = reader.ints(sizes.touched);
        a.local = reader.ints(sizes.edges);
    }
    if (sizes.parts & TRANSPOSED) {
        a.colptr = reader.longs(sizes.cols + 1);
        a.row_of_position = reader.ints(sizes.edges);
        a.slot_of_position = reader.longs(sizes.edges);
    }
    return reader.length();
}

/* The gradients of the backward operation, in the order of its outputs; bits of `wanted`. */
enum Gradient { DX, DCENTRE, DVALUES, DU, DV, DC, DW, DB, GRADIENTS };

}  // namespace eqc

#endif
