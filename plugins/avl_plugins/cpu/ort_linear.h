// What ops of linear layers share.
#ifndef AVL_ORT_LINEAR_H
#define AVL_ORT_LINEAR_H

#include "linear.h"
#include "ort_abi.h"
#include "quantized.h"

// What kernels have for an ONNX Runtime's type; whether there is any.
int avl_element_of(int type, avl_element *element);

// Input `index` of a node, which has to be an initializer that kernels take.
OrtStatus *avl_read_stored(const OrtKernelInfo *info, size_t index, avl_stored *weight);

// Packs what `tensors` inputs from `index` on make a weight of: codes, scales and, of three, zero points.
OrtStatus *avl_pack_weight(const OrtKernelInfo *info, size_t index, size_t tensors,
                           const avl_quantized_kernels *with, avl_packed *weight);

#endif
