/* Expansion of the weights of a steerable convolution into its filter, and the transpose of that linear map.
 *
 * Weiler, Cesa, "General E(2)-Equivariant Steerable CNNs", arXiv 1911.08251, eq. 4; the block filling that QUVA-Lab/e2cnn
 * issue 12 asks for.
 */
#ifndef EQC_STEERABLE_H
#define EQC_STEERABLE_H

#include "../common/contract.h"

/* Bits of `flags`, beside those of eqc_processor_flags. */
enum eqc_st_flags {
    EQC_ST_DIRECT = 1 /* by the sampled basis itself, not by harmonics */
};

/* A layer has fields of channels on both sides. The filter's block of an out field and an in field is linear in the
 * weights of that pair of fields, by a map that all pairs of one type share; pairs without a type have a block of 0.
 *
 * By harmonics, for a pair of type t whose first weight is w:
 *
 *   C[k, r] = sum over slots j of harmonic k of weights[w + element(j)] · value[j, r],          r < rows(t)
 *   F[r, p] = sum over k of C[k, r] · harmonics[index(k), p],
 *   filter[first out channel + o, first in channel + i, p] = sign · F[r, permutation[p]]  for each image (o, i, sign,
 *       permutation) of row r.
 *
 * Directly: filter[first out channel + o, first in channel + i, p] = sum over elements b of weights[w + b] ·
 * value[b, o, i, p].
 *
 *   expand_forward: the filter, all of it. expand_backward: weights = the transposed map of the filter, all of them.
 *
 * Each weight belongs to one pair, and each (o, i) of a block is an image of one row, so nothing is summed in an order
 * that could change.
 *
 * On the CPU each call checks every number of the table, the pairs, the starts and the permutations, and that the pairs
 * have weights_size weights together; that no two share one is the caller's to see to. */
typedef struct eqc_expansion {
    int64_t out_fields;
    int64_t in_fields;
    int64_t out_channels;
    int64_t in_channels;
    int64_t pixels;       /* of a kernel */
    int64_t harmonics;    /* directly: 0 */
    int64_t types;
    int64_t permutations; /* at least 1: the first is the identity; directly: 0 */
    int64_t weights_size;
    int64_t table_size;
    int64_t values_size;
    int32_t flags;
    int32_t threads; /* cpu: 0 takes all cores */

    const int32_t* pairs;       /* [out_fields, in_fields, 2] type, or -1, and the first weight */
    const int32_t* out_starts;  /* [out_fields + 1] first channel of each field, and out_channels */
    const int32_t* in_starts;   /* [in_fields + 1] likewise */
    const int32_t* table;       /* [table_size] a record of 8 numbers for each type, then their lists; see below */
    const int32_t* permutation; /* [permutations, pixels] */
    const void* values;         /* [values_size] */
    const void* harmonic;       /* [harmonics, pixels] */

    void* weights; /* [weights_size]; expand_forward reads them */
    void* filter;  /* [out_channels, in_channels, pixels]; expand_backward reads it */
} eqc_expansion;

/* A record: out size, in size, elements (weights of a pair), rows, harmonics that are used, slots, first number of its
 * lists in the table, first of its values. Directly rows, harmonics and slots are 0, there are no lists, and the values
 * are [elements, out size, in size, pixels].
 *
 * Lists: for each harmonic that is used {index, slots, first slot}, first slots ascending from 0; the element of each
 * slot; for each row its first image, and the number of images, out size · in size; the images {o, i, sign,
 * permutation}. Values: [slots, rows]. */
enum eqc_st_record {
    EQC_ST_OUT_SIZE,
    EQC_ST_IN_SIZE,
    EQC_ST_ELEMENTS,
    EQC_ST_ROWS,
    EQC_ST_HARMONICS,
    EQC_ST_SLOTS,
    EQC_ST_LISTS,
    EQC_ST_VALUES,
    EQC_ST_RECORD /* numbers in a record */
};

EQC_OPERATION(expand_forward, eqc_expansion)
EQC_OPERATION(expand_backward, eqc_expansion)

#endif
