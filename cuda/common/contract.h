/* The calling convention of every compiled operation, the same on the CPU, on CUDA and emulated.
 *
 * A family declares one plain struct with everything an operation reads and writes, and one EQC_OPERATION for each
 * operation. All memory belongs to the caller; nothing is allocated inside, no exception leaves, and the only global
 * state is the cpu's pool of threads, so calls from several threads do not meet. Pointers are host memory for the cpu
 * and the emulated build and device memory for the cuda build; the struct itself and `stream` (a cudaStream_t, or NULL)
 * are always host values.
 *
 * Python reads the structs from the headers (eqconv_cli/kernels/contract.py), so inside `typedef struct` keep to one
 * field a line and to the types int64_t, int32_t, double and pointers.
 */
#ifndef EQC_CONTRACT_H
#define EQC_CONTRACT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define EQC_EXTERN extern "C"
#else
#define EQC_EXTERN
#endif
#define EQC_API EQC_EXTERN __attribute__((visibility("default")))

/* What an operation returns. A CUDA error code e comes back as EQC_CUDA_ERROR + e. */
enum eqc_status {
    EQC_OK = 0,
    EQC_BAD_ARGUMENT = 1,    /* a null pointer that is needed, or a size that cannot be */
    EQC_UNSUPPORTED = 2,     /* a valid request that this build does not compute */
    EQC_EMULATION_FAULT = 3, /* the emulated device found a fault; eqc_emulation_report() tells which */
    EQC_CUDA_ERROR = 1000
};

/* Bits of the `flags` of every family's struct: what the cpu may compute with. */
enum eqc_processor_flags {
    EQC_AVX2 = 16,     /* no wider instructions than AVX2 */
    EQC_PORTABLE = 32, /* baseline instructions only */
    EQC_AVX512 = 64    /* no matrix unit (AMX) */
};

/* cpu: operations that this thread calls from now on compute on threads that are lent to them, NULL: on the core's own.
 * lend(n, work, context) calls work(context, k) once for each k in [0, n), on any threads, and returns when all calls
 * have.
 *
 * A framework's threads keep watching for work for a while, and take the cores from others as long as they do. */
typedef void (*eqc_lend)(int n, void (*work)(void*, int), void* context);
EQC_API void eqc_borrow_threads(eqc_lend lend);

/* Declares, for float and double: the bytes of workspace (64-byte aligned) that a call needs, and the call. */
#define EQC_OPERATION(operation, arguments)                                                                 \
    EQC_API size_t eqc_##operation##_f32_workspace(const arguments*);                                       \
    EQC_API size_t eqc_##operation##_f64_workspace(const arguments*);                                       \
    EQC_API int eqc_##operation##_f32(const arguments*, void* workspace, void* stream);                     \
    EQC_API int eqc_##operation##_f64(const arguments*, void* workspace, void* stream);

#endif
