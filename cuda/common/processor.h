/* What the processor can do. */
#ifndef EQC_PROCESSOR_H
#define EQC_PROCESSOR_H

namespace eqc {

enum InstructionSet { portable_set, avx2_set, avx512_set, amx_set };

/* The widest set that this processor and system have and the flags of a call (eqc_processor_flags) allow. */
InstructionSet instruction_set(int flags);

}  // namespace eqc

#endif
