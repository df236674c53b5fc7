// What ops of linear layers with stored weights share.
#ifndef AVL_ORT_LINEAR_H
#define AVL_ORT_LINEAR_H

#include "linear.h"
#include "ort_abi.h"

// What kernels have for an ONNX Runtime's type; whether there is any.
int avl_element_of(int type, avl_element *element);

// Input `index` of a node, which has to be an initializer that kernels take.
OrtStatus *avl_read_stored(const OrtKernelInfo *info, size_t index, avl_stored *weight);

#endif
