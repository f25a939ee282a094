/* The compiled operations as TensorFlow operators, for tf.load_op_library; each family's are in a file of its own. */
#include <string>

#include "cores.h"

EQC_DEFINE_OPEN_CORE()
