/* Writing into a variable from a TensorFlow operator. */
#ifndef EQC_TENSORFLOW_VARIABLE_H
#define EQC_TENSORFLOW_VARIABLE_H

#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow_call.h"

namespace eqc {

/* Calls `write(base, y)` while nobody else reads or writes the variable: y is to become its value, base is what it has.
 * They are the same tensor, whose memory is written, unless somebody still holds the value as it was. */
template <typename T, typename Write>
absl::Status write_variable(OpKernelContext* ctx, const char* input, Write write) {
    tensorflow::ResourceHandle handle;
    TF_RETURN_IF_ERROR(tensorflow::HandleFromInput(ctx, input, &handle));
    tensorflow::core::RefCountPtr<tensorflow::Var> variable;
    TF_RETURN_IF_ERROR(tensorflow::LookupResource(ctx, handle, &variable));
    tensorflow::mutex_lock lock(*variable->mu());
    Tensor* value = variable->tensor();
    if (!value->IsInitialized()) return absl::FailedPreconditionError("the variable is not initialised");
    if (value->dtype() != tensorflow::DataTypeToEnum<T>::value)
        return absl::InvalidArgumentError("the variable has another dtype than what is written to it");
    if (value->RefCountIsOne()) return write(*value, value);
    Tensor changed;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(value->dtype(), value->shape(), &changed));
    TF_RETURN_IF_ERROR(write(*value, &changed));
    *value = changed;
    return absl::OkStatus();
}

}  // namespace eqc

#endif
