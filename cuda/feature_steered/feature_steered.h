/* Feature-steered graph convolution (Verma, Boyer, Verbeek, CVPR 2018), fused: the contract.
 *
 *   y_i = b + sum_m W_m^T sum_{j in N(i)} w_ij softmax_m(u_m.x_i + v_m.x_j + c_m) x_j,   then max(y, 0) if asked for.
 *
 * V rows (centres), columns (sources), E edges in row order, C channels, D outputs, M matrices. All real arrays have
 * the operation's type (float in _f32, double in _f64), are dense and row-major.
 */
#ifndef EQC_FEATURE_STEERED_H
#define EQC_FEATURE_STEERED_H

#include "../common/contract.h"

enum eqc_feature_steered_flags {
    EQC_FS_RELU = 1,         /* y = max(y, 0); backward reads y and lets a cotangent through where y > 0 */
    EQC_FS_FIRST = 2,        /* forward multiplies by W before the sum over the neighbours (for C much larger than D) */
    EQC_FS_STABLE = 4,       /* every edge's softmax from its own logits, instead of the guarded factored form */
    EQC_FS_DETERMINISTIC = 8 /* cuda, emulated: gradients without atomics; the cpu is always deterministic */
};

typedef struct eqc_feature_steered {
    int64_t rows;
    int64_t cols;
    int64_t edges;
    int64_t given_edges; /* length of values; more than edges when the plan dropped some */
    int64_t channels;
    int64_t outputs;
    int64_t matrices;
    int32_t flags;
    int32_t threads; /* cpu: 0 takes all cores */

    /* The pattern in row order. */
    const int64_t* rowptr;       /* [rows + 1] */
    const int32_t* col;          /* [edges] */
    const int64_t* edge_of_slot; /* [edges] entry of values for each edge in row order; NULL: the same order */

    /* cpu: fixed chunks of rows, so that sums do not depend on the number of threads. Forward needs chunk_rows. */
    int64_t chunks;
    const int64_t* chunk_rows;    /* [chunks + 1] first row of each chunk */
    const int64_t* touched_start; /* [chunks + 1] */
    const int32_t* touched;       /* [touched_start[chunks]] columns that a chunk's edges name, ascending; if there
                                     are as many rows as columns, the chunk's own rows too */
    const int32_t* local;         /* [edges] position of an edge's column among those of its chunk */

    /* cuda, emulated, deterministic backward: the pattern by columns. */
    const int64_t* colptr;           /* [cols + 1] */
    const int32_t* row_of_position;  /* [edges] */
    const int64_t* slot_of_position; /* [edges] */

    const void* x;      /* [cols, C] */
    const void* centre; /* [rows, C]; the pointer x itself when centre i is column i */
    const void* values; /* [given_edges] */
    const void* u;      /* [C, M] */
    const void* v;      /* [C, M] */
    const void* c;      /* [M] */
    const void* w;      /* [M, C, D] */
    const void* b;      /* [D] */
    void* y;            /* [rows, D]; forward writes it, backward reads it when EQC_FS_RELU is set */

    /* Backward: the cotangent, and the gradients; NULL for one that is not wanted. When centre is x, dx holds both
     * parts and dcentre must be NULL. */
    const void* dy; /* [rows, D] */
    void* dx;       /* [cols, C] */
    void* dcentre;  /* [rows, C] */
    void* dvalues;  /* [given_edges], 0 for edges that the plan dropped */
    void* du;
    void* dv;
    void* dc;
    void* dw;
    void* db;
} eqc_feature_steered;

EQC_OPERATION(feature_steered_forward, eqc_feature_steered)
EQC_OPERATION(feature_steered_backward, eqc_feature_steered)

#endif
