/* Probes of the CPU: what it can do at most, as measurements that bench divides its times by. The contract.
 *
 * Both use `threads` threads (0: all cores), let them start together, and measure from then until the last one is done,
 * so that starting threads costs nothing.
 */
#ifndef EQC_PROBES_H
#define EQC_PROBES_H

#include "../common/contract.h"

enum eqc_probe_flags {
    EQC_PROBE_STREAMED = 1, /* copy: stores that bypass the caches, where the instruction set has them */
    EQC_PROBE_AVX2 = 16,    /* no wider instructions than AVX2 */
    EQC_PROBE_PORTABLE = 32 /* baseline instructions only */
};

/* Multiplies and adds in registers: every thread runs `rounds` rounds of independent chains. */
typedef struct eqc_multiply_add {
    int64_t rounds;
    int32_t flags;
    int32_t threads;
    double* flops;   /* [1] done by all threads; a multiplication with its addition counts two */
    double* seconds; /* [1] */
    void* sum;       /* [1] of everything that was computed, so that nothing can be left out */
} eqc_multiply_add;

/* Copies one array into another; every thread copies its part `rounds` times. */
typedef struct eqc_copy {
    int64_t size; /* elements of each array */
    int64_t rounds;
    int32_t flags;
    int32_t threads;
    const void* source; /* [size] */
    void* target;       /* [size], aligned to 64 bytes when EQC_PROBE_STREAMED is set */
    double* bytes;      /* [1] read plus written */
    double* seconds;    /* [1] */
} eqc_copy;

EQC_OPERATION(probe_multiply_add, eqc_multiply_add)
EQC_OPERATION(probe_copy, eqc_copy)

#endif
