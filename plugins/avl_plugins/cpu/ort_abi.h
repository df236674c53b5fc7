// The part of ONNX Runtime's C interface that a library of custom ops needs.
//
// ONNX Runtime's wheels ship no headers. Its interface is a table of functions to which releases
// only append, so the positions below hold for every release since 1.17 (API version 17, the first
// with ParallelFor); ONNX Runtime refuses, when the library is registered, a version it lacks.
// Source: include/onnxruntime/core/session/onnxruntime_c_api.h of that release.
#ifndef AVL_ORT_ABI_H
#define AVL_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 17
#define ORT_FAIL 1
#define ORT_FLOAT 1 // ONNXTensorElementDataType
#define ORT_BOOL 9
#define ORT_UINT8 2
#define ORT_INT8 3
#define ORT_INT64 7
#define ORT_HALF 10
#define ORT_BFLOAT 16
#define ORT_INT4 22
#define ORT_ANY 0

typedef struct OrtStatus OrtStatus; // NULL: it went well
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtCustomOp OrtCustomOp;

// Positions of unused functions are counted, not named.
typedef struct OrtApi {
    OrtStatus *(*CreateStatus)(int code, const char *message);
    void *unused_1[25];
    OrtStatus *(*CreateCustomOpDomain)(const char *domain, OrtCustomOpDomain **out); // 26
    OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op);
    OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
    void *unused_29[22];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **out); // 51
    void *unused_52[8];
    OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, int *out); // 60
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *out); // 61
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *dims, size_t count);
    void *unused_63[2];
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value,
                                        OrtTensorTypeAndShapeInfo **out); // 65
    void *unused_66[19];
    OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name,
                                               float *out); // 85
    OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name,
                                               int64_t *out);
    void *unused_87[3];
    OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index,
                                         const OrtValue **out); // 90
    OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index,
                                          const int64_t *dims, size_t count, OrtValue **out);
    void *unused_92[7];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info); // 99
    void *unused_100[137];
    OrtStatus *(*HasSessionConfigEntry)(const OrtSessionOptions *options, const char *key,
                                        int *has); // 237
    OrtStatus *(*GetSessionConfigEntry)(const OrtSessionOptions *options, const char *key,
                                        char *value, size_t *size);
    void *unused_239[10];
    OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *info, size_t index,
                                                    int *is_constant, const OrtValue **out); // 249
    void *unused_250[24];
    OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context,
                                            void (*function)(void *data, size_t index),
                                            size_t total, size_t batches, void *data); // 274
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version); // NULL for a version it lacks
    const char *(*GetVersionString)(void);
} OrtApiBase;

struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
    const char *(*GetName)(const OrtCustomOp *op);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *op); // NULL: the CPU
    int (*GetInputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp *op);
    int (*GetOutputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
    void (*KernelCompute)(void *kernel, OrtKernelContext *context);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index); // 0: required
    int (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp *op, size_t index); // 0: where the kernel runs
    int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api,
                                 const OrtKernelInfo *info, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *op, OrtShapeInferContext *context);
    int (*GetStartVersion)(const OrtCustomOp *op);
    int (*GetEndVersion)(const OrtCustomOp *op);
};

#endif
