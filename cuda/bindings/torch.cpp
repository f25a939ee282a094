/* The compiled operations as PyTorch operators, on PyTorch's stable ABI only: one binary for every release from 2.10.
 *
 * Each family enters its operators into the library eqconv:: from a file of its own. Fake kernels and gradients are
 * registered in Python.
 */
#include "cores.h"

EQC_DEFINE_OPEN_CORE()
