/* Which row of an array a site meets at a tap of a convolution: by a table, or computed from the site's flat
 * position. */
#ifndef EQC_BLOCK_SPARSE_NEIGHBOURS_CUH
#define EQC_BLOCK_SPARSE_NEIGHBOURS_CUH

#include "launch.cuh"

namespace eqc {

/* Two images of a convolution, one axis of them: `own` positions look for neighbours among `other` ones. */
struct Axis {
    int own;
    int other;
    int stride;
    int pad;
    int dilation;

    /* The neighbour of an output position, an input position; -1 outside. */
    __device__ __forceinline__ int input(int at, int tap) const {
        const int64_t found = int64_t(at) * stride - pad + int64_t(tap) * dilation;
        return found >= 0 && found < other ? int(found) : -1;
    }
    /* The output position that reads an input position at a tap; -1 where there is none. */
    __device__ __forceinline__ int output(int at, int tap) const {
        const int64_t steps = int64_t(at) + pad - int64_t(tap) * dilation;
        if (steps < 0) {
            return -1;
        }
        const uint32_t found = uint32_t(steps) / uint32_t(stride);
        return found * uint32_t(stride) == uint32_t(steps) && found < uint32_t(other) ? int(found) : -1;
    }
};

struct Neighbours {
    const int32_t* table;  // [rows, taps]; NULL: by the geometry
    int64_t rows;
    int taps;

    /* Where the table names entries of a list instead of rows: only those that count, and their rows. */
    bool by_entry;
    const int32_t* row_of_entry;  // NULL: the same
    const int32_t* count;
    int64_t capacity;

    const int32_t* site;  // flat position of row r; NULL: r
    Axis down;
    Axis across;
    int kernel_width;
    const int32_t* reader;  // [reader_size] by output position: the row of its cotangent or -1; NULL: look for inputs
    int64_t reader_size;

    /* A row that looks for neighbours; row -1: none. */
    struct Seeker {
        int64_t row;
        int64_t first;  // position (0, 0) of the same image among the others
        int down;
        int across;
    };

    __device__ __forceinline__ Seeker seeker(int64_t row, bool valid) const {
        if (!valid || table != nullptr) {
            return {valid ? row : -1, 0, 0, 0};
        }
        const uint32_t position = site == nullptr ? uint32_t(row) : uint32_t(site[row]);
        const uint32_t line = position / uint32_t(across.own);
        const uint32_t image = line / uint32_t(down.own);
        return {row, int64_t(image) * down.other * across.other, int(line - image * uint32_t(down.own)),
                int(position - line * uint32_t(across.own))};
    }

    __device__ __forceinline__ int32_t find(const Seeker& from, int tap) const {
        if (from.row < 0) {
            return -1;
        }
        if (table != nullptr) {
            const int32_t found = eqc_view(table, rows * taps)[from.row * taps + tap];
            if (!by_entry) {
                return found;
            }
            return found < 0 || found >= entries(count, capacity) ? -1
                   : row_of_entry == nullptr                      ? found
                                                                  : row_of_entry[found];
        }
        const int i = tap / kernel_width;
        const int j = tap - i * kernel_width;
        const int h = reader == nullptr ? down.input(from.down, i) : down.output(from.down, i);
        const int w = reader == nullptr ? across.input(from.across, j) : across.output(from.across, j);
        if (h < 0 || w < 0) {
            return -1;
        }
        const int64_t position = from.first + int64_t(h) * across.other + w;
        return reader == nullptr ? int32_t(position) : int32_t(eqc_view(reader, reader_size)[position]);
    }
};

}  // namespace eqc

#endif
