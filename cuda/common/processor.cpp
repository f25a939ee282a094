#include "processor.h"

#include "contract.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace eqc {
namespace {

#if defined(__x86_64__)
/* The matrix unit's registers are large, so Linux wants to be asked for them, once in a process. */
bool matrix_unit() {
    unsigned a, b, c, d;
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tile)) != (bf16 | tile)) return false;
#if defined(__linux__)
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

InstructionSet widest() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return portable_set;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return avx2_set;
    return matrix_unit() ? amx_set : avx512_set;
}
#else
InstructionSet widest() { return portable_set; }
#endif

}  // namespace

InstructionSet instruction_set(int flags) {
    static const InstructionSet here = widest();
    const InstructionSet allowed = flags & EQC_PORTABLE ? portable_set
                                   : flags & EQC_AVX2   ? avx2_set
                                   : flags & EQC_AVX512 ? avx512_set
                                                        : amx_set;
    return here < allowed ? here : allowed;
}

}  // namespace eqc
