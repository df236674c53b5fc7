// A step in ONNX Runtime's threads.
#ifndef AVL_STEP_H
#define AVL_STEP_H

#include "attention.h"
#include "ort_abi.h"

// Computes `step`, all of which is filled in, and does its refresh where one is offered.
OrtStatus *avl_run_step(OrtKernelContext *context, const avl_step_kernels *kernels,
                        const avl_step *step);

#endif
