/* Spatially sparse convolution (sparse blocks: Ren, Pokrovsky, Yang, Urtasun, CVPR 2018; submanifold: Graham, van der
 * Maaten, 2017): the contract.
 *
 * Images are [N, H, W, C], channels last; every real array has the operation's type (float in _f32, double in _f64), is
 * dense and row-major. A flat position is (n * H + h) * W + w and fits in int32; offsets of elements are 64-bit inside.
 *
 * Lists have a capacity (a field of the struct) and may use less of it: `count`, one number in the same memory as the
 * arrays, says how many of the entries count; NULL: all. What is behind them is neither read nor written, unless said
 * otherwise. So nothing on a GPU's path ever waits for a number to come back.
 */
#ifndef EQC_BLOCK_SPARSE_H
#define EQC_BLOCK_SPARSE_H

#include "../common/contract.h"

enum eqc_block_sparse_flags {
    EQC_BS_AVERAGE = 1,   /* mask_blocks: mean over the whole window instead of the maximum */
    EQC_BS_FIRST = 2,     /* mask_blocks: an empty mask gives block (0, 0, 0) */
    EQC_BS_TRANSPOSE = 1, /* blocks are [rows, C, h, w] */
    EQC_BS_ADD = 2,       /* block_scatter: add, in the order of the rows, instead of letting the last row win */
    EQC_BS_OWNED = 4,     /* block_gather: 0 at pixels that a later row covers, too */
    EQC_BS_RELU = 1,      /* site_forward: y = max(y, 0); site_backward reads y, lets a cotangent through where y > 0 */
    EQC_BS_ORIGINAL = 2   /* residual: outside of the image 0 is before the first normalisation, not after the second */
};

/* A mask [images, height, width] and windows over it: window (i, j) is the rows offset_height + stride_height * i and
 * the window_height - 1 after it, likewise for columns; it may lie outside the image partly or wholly.
 *
 * A window is active when a value inside the image is above the tolerance or, with EQC_BS_AVERAGE, when the sum of the
 * values inside the image, divided by the whole window, is. Comparisons are in float, NaN compares false. */
typedef struct eqc_mask {
    int64_t images;
    int64_t height;
    int64_t width;
    int64_t grid_height; /* windows along each axis */
    int64_t grid_width;
    int64_t window_height;
    int64_t window_width;
    int64_t stride_height;
    int64_t stride_width;
    int64_t offset_height;
    int64_t offset_width;
    double tolerance;
    int32_t flags;
    int32_t threads; /* cpu: 0 takes all cores */

    const void* mask;     /* [images, height, width]; NULL when it is given as bytes */
    const uint8_t* bytes; /* [images, height, width] of 0 and 1, instead of mask */
    int32_t* index;       /* mask_blocks: [images * grid_height * grid_width, 3], (image, i, j) of the active windows in
                             raster order; mask_pixels: [images * grid_height * grid_width], their flat positions */
    int32_t* count;       /* [1] how many are active */
} eqc_mask;

EQC_OPERATION(mask_blocks, eqc_mask)
EQC_OPERATION(mask_pixels, eqc_mask)

/* Windows over images [images, height, width, channels], as in eqc_mask, by a list of (image, i, j) in any order and
 * with repeats; entries whose window is outside the image are allowed, images and grid positions below 0 are not.
 *
 * A window of block_gather and block_scatter has at most 2^31 - 1 pixels.
 *
 *   block_gather: blocks[r] = the window of row r, 0 outside the image.
 *   block_scatter: y = base, then each row's window takes (or, with EQC_BS_ADD, adds) its block; where windows overlap
 *       the later row wins (or sums go in the order of the rows). blocks_in NULL: blocks of zeros. base may be y.
 *   block_pixels: the flat positions that at least one window covers, ascending. */
typedef struct eqc_blocks {
    int64_t images;
    int64_t height;
    int64_t width;
    int64_t channels;
    int64_t rows; /* capacity of the list */
    int64_t window_height;
    int64_t window_width;
    int64_t stride_height;
    int64_t stride_width;
    int64_t offset_height;
    int64_t offset_width;
    int32_t flags;
    int32_t threads;

    const int32_t* index; /* [rows, 3] */
    const int32_t* count; /* [1] or NULL */
    const void* x;        /* block_gather: [images, height, width, C] */
    void* blocks;         /* block_gather: [rows, h, w, C] or [rows, C, h, w]; 0 in rows that do not count */
    const void* blocks_in; /* block_scatter: the same */
    const void* base;      /* block_scatter: [images, height, width, C]; NULL: zeros */
    void* y;               /* block_scatter: [images, height, width, C] */
    int32_t* pixels;       /* block_pixels: [images * height * width] capacity */
    int32_t* pixel_count;  /* block_pixels: [1] */
} eqc_blocks;

EQC_OPERATION(block_gather, eqc_blocks)
EQC_OPERATION(block_scatter, eqc_blocks)
EQC_OPERATION(block_pixels, eqc_blocks)

/* A convolution at a list of output sites:
 *
 *   y[s] = bias + sum over taps t, channels c of x[neighbour(s, t), c] w[t, c, :],   then max(y, 0) if asked for,
 *
 * where a missing neighbour counts as 0 and rows of y that are not in the list are left alone. Neighbours come from
 *   - the image form (table NULL): sites are flat positions of the output [images, out_height, out_width], and tap
 *     (i, j), number i * kernel_width + j, of (n, h, w) is the pixel (n, h * stride_height - pad_height + i *
 *     dilation_height, ...) of the input [images, height, width], missing outside of it; or from
 *   - the table form: table[i, t] is the row of x for entry i of the list, -1 where there is none. Within one tap no
 *     row of x is named twice.
 * No site is listed twice. For a list with a position that y does not have the cpu answers EQC_BAD_ARGUMENT.
 *
 * site_backward gives dx (all of it, 0 where no site reads), dw and db of <dy, y>; of dy only the listed sites are
 * read. */
typedef struct eqc_sites {
    int64_t sites; /* capacity of the list */
    int64_t taps;
    int64_t channels; /* C */
    int64_t filters;  /* K */
    int64_t in_rows;  /* rows of x; images * height * width in the image form */
    int64_t out_rows; /* rows of y */

    int64_t images; /* the image form */
    int64_t height;
    int64_t width;
    int64_t out_height;
    int64_t out_width;
    int64_t kernel_height;
    int64_t kernel_width;
    int64_t stride_height;
    int64_t stride_width;
    int64_t pad_height; /* in front */
    int64_t pad_width;
    int64_t dilation_height;
    int64_t dilation_width;

    int32_t flags;
    int32_t threads;

    const int32_t* site;    /* [sites] rows of y; NULL in the table form: entry i is row i */
    const int32_t* count;   /* [1] or NULL */
    const int32_t* table;   /* [sites, taps] or NULL */
    const int32_t* inverse; /* site_backward, table form: [in_rows, taps] the entry that reads row i at tap t, -1 where
                               there is none; NULL: made in the workspace */
    const void* x;    /* [in_rows, C] */
    const void* w;    /* [taps, C, K] */
    const void* bias; /* [K] or NULL */
    void* y;          /* [out_rows, K]; site_backward reads it when EQC_BS_RELU is set */

    const void* dy; /* [out_rows, K] */
    void* dx;       /* [in_rows, C]; NULL for a gradient that is not wanted */
    void* dw;       /* [taps, C, K] */
    void* db;       /* [K] */
} eqc_sites;

EQC_OPERATION(site_forward, eqc_sites)
EQC_OPERATION(site_backward, eqc_sites)

/* Neighbours of sites with 1 to 4 spatial axes. A coordinate row is (batch, axis 0, axis 1, ...); rows are unique and
 * in range. Numbers of axes that there are not are ignored.
 *
 *   site_outputs: the coordinates t for which some input site and tap o give t * stride - pad + o * dilation =
 *       coordinate with t in range of out_extent, sorted lexicographically; none, and on the cpu EQC_BAD_ARGUMENT, where
 *       there are more than out_rows.
 *   site_table: for each output row and tap (the last axis fastest) the input row there, or -1. */
typedef struct eqc_neighbours {
    int64_t axes; /* 1 to 4 */
    int64_t batch;
    int64_t rows;     /* input sites, capacity */
    int64_t out_rows; /* output sites, capacity */
    int64_t extent_0; /* of the input */
    int64_t extent_1;
    int64_t extent_2;
    int64_t extent_3;
    int64_t out_extent_0;
    int64_t out_extent_1;
    int64_t out_extent_2;
    int64_t out_extent_3;
    int64_t kernel_0;
    int64_t kernel_1;
    int64_t kernel_2;
    int64_t kernel_3;
    int64_t stride_0;
    int64_t stride_1;
    int64_t stride_2;
    int64_t stride_3;
    int64_t pad_0;
    int64_t pad_1;
    int64_t pad_2;
    int64_t pad_3;
    int64_t dilation_0;
    int64_t dilation_1;
    int64_t dilation_2;
    int64_t dilation_3;
    int32_t flags;
    int32_t threads;

    const int32_t* coords;     /* [rows, 1 + axes] */
    const int32_t* count;      /* [1] or NULL */
    const int32_t* out_coords; /* site_table: [out_rows, 1 + axes] */
    const int32_t* out_count;  /* site_table: [1] or NULL */
    int32_t* made_coords;      /* site_outputs: [out_rows, 1 + axes] */
    int32_t* made_count;       /* site_outputs: [1] */
    int32_t* table;            /* site_table: [out_rows, taps]; -1 in rows that do not count */
} eqc_neighbours;

EQC_OPERATION(site_outputs, eqc_neighbours)
EQC_OPERATION(site_table, eqc_neighbours)

/* The pre-activation bottleneck at a list of pixels, stride 1, 3x3 with one pixel of padding:
 *
 *   y[p] = x[p] + w3^T relu(scale3 * (3x3 convolution of h2)[p] + shift3),
 *   h2 = relu(scale2 * h1 + shift2),  h1 = w1^T a,  a = relu(scale1 * x + shift1), or x when scale1 is NULL.
 *
 * Rows of y that are not in the list are left alone. Outside the image h2 is 0 or, with EQC_BS_ORIGINAL, what x = 0
 * gives. y is not x. No pixel is listed twice; on the cpu one that there is not gives EQC_BAD_ARGUMENT. */
typedef struct eqc_residual {
    int64_t images;
    int64_t height;
    int64_t width;
    int64_t channels;   /* C */
    int64_t bottleneck; /* M */
    int64_t sites;      /* capacity of the list */
    int32_t flags;
    int32_t threads;

    const int32_t* site;  /* [sites] flat positions, ascending */
    const int32_t* count; /* [1] or NULL */
    const void* x;        /* [images, height, width, C] */
    const void* scale1;   /* [C] */
    const void* shift1;   /* [C] */
    const void* w1;       /* [C, M] */
    const void* scale2;   /* [M] */
    const void* shift2;   /* [M] */
    const void* w2;       /* [9, M, M] */
    const void* scale3;   /* [M] */
    const void* shift3;   /* [M] */
    const void* w3;       /* [M, C] */
    void* y;              /* [images, height, width, C] */
} eqc_residual;

EQC_OPERATION(residual_forward, eqc_residual)

#endif
