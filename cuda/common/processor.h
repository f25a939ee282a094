/* What the processor can do. */
#ifndef EQC_PROCESSOR_H
#define EQC_PROCESSOR_H

namespace eqc {

enum InstructionSet { portable_set, avx2_set, avx512_set, amx_set };

/* The widest set that this processor and system have and the flags of a call allow: 16 nothing beyond AVX2, 32 the
 * baseline only, 64 no matrix unit, in every family. */
InstructionSet instruction_set(int flags);

}  // namespace eqc

#endif
