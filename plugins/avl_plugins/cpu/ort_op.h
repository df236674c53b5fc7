// What the custom ops of ONNX Runtime's CPU provider share.
#ifndef AVL_ORT_OP_H
#define AVL_ORT_OP_H

#include "epilogue.h"
#include "ort_abi.h"

#define AVL_MOST_DIMS 4

// An op: what ONNX Runtime asks about it, in the order of its schema.
typedef struct avl_op {
    OrtCustomOp op; // first, as ONNX Runtime is given its address
    const char *name;
    size_t inputs, outputs;
    const int *input_types, *output_types; // no output types: all float
    int biased;                            // of attention: its last inputs are biases
} avl_op;

typedef struct avl_linear_op {
    avl_op op;
    int has_bias; // behind each weight's tensors
    avl_activation activation; // of the sums; of the first product, if it gates the second
    int is_gated;              // two weights, of whose products one output is made
} avl_linear_op;

static inline size_t avl_weights_of(const avl_linear_op *op) { return op->is_gated ? 2 : op->op.outputs; }

// The ops. Those on tiles take the places of their like where a session asks for bf16.
#define AVL_BIASED 2
#define AVL_KEPT 4 // two ways to keep rows beside float32, without biases and with them
#define AVL_MUTUAL 2
#define AVL_STATES 3
#define AVL_HEADS 3
#define AVL_PLAIN_LINEARS 12
#define AVL_QUANTIZED_LINEARS 24
#define AVL_CODED_EXPERTS 2 // of 4 and 8 bits
extern const avl_op avl_split_cache_step, avl_split_cache_prompt, avl_split_cache_prompt_on_tiles,
    avl_biased[AVL_BIASED], avl_kept_attention[AVL_KEPT], avl_kept_attention_on_tiles[AVL_KEPT],
    avl_mutual_attention[AVL_MUTUAL], avl_mutual_attention_on_tiles[AVL_MUTUAL],
    avl_state_ops[AVL_STATES], avl_head_ops[AVL_HEADS], avl_add_rms_norm, avl_logits_linear, avl_sparse_experts,
    avl_coded_experts[AVL_CODED_EXPERTS];
extern const avl_linear_op avl_plain_linears[AVL_PLAIN_LINEARS],
    avl_plain_linears_on_tiles[AVL_PLAIN_LINEARS], avl_quantized_linears[AVL_QUANTIZED_LINEARS];

// Set when the library is registered, for good: one process has one ONNX Runtime.
extern const OrtApi *avl_api;

const char *avl_op_name(const OrtCustomOp *op);
const char *avl_op_provider(const OrtCustomOp *op);
int avl_op_input_type(const OrtCustomOp *op, size_t index);
size_t avl_op_inputs(const OrtCustomOp *op);
int avl_op_output_type(const OrtCustomOp *op, size_t index);
size_t avl_op_outputs(const OrtCustomOp *op);
int avl_op_required(const OrtCustomOp *op, size_t index);
int avl_op_one(const OrtCustomOp *op);

#define AVL_OP(CREATE, COMPUTE, DESTROY)                                                           \
    {                                                                                              \
        .version = ORT_API_VERSION, .GetName = avl_op_name,                                        \
        .GetExecutionProviderType = avl_op_provider, .GetInputType = avl_op_input_type,            \
        .GetInputTypeCount = avl_op_inputs, .GetOutputType = avl_op_output_type,                   \
        .GetOutputTypeCount = avl_op_outputs, .KernelDestroy = DESTROY,                            \
        .GetInputCharacteristic = avl_op_required, .GetOutputCharacteristic = avl_op_required,     \
        .GetInputMemoryType = avl_op_required, .GetVariadicInputMinArity = avl_op_one,             \
        .GetVariadicInputHomogeneity = avl_op_one, .GetVariadicOutputMinArity = avl_op_one,        \
        .GetVariadicOutputHomogeneity = avl_op_one, .CreateKernelV2 = CREATE,                      \
        .KernelComputeV2 = COMPUTE, .GetStartVersion = avl_op_one, .GetEndVersion = avl_op_one     \
    }

typedef struct avl_tensor {
    const void *data;
    size_t rank;
    int64_t dims[AVL_MOST_DIMS];
    int type; // of constants alone: the schema says an input's
} avl_tensor;

typedef void avl_rows_task(void *work, int64_t first, int64_t end);

// ONNX Runtime names the op itself.
OrtStatus *avl_failed(const char *expected);
OrtStatus *avl_input(const OrtKernelContext *context, size_t index, avl_tensor *to);
OrtStatus *avl_input_element(const OrtKernelContext *context, size_t index, int *type);
// All inputs of a node, each of its rank.
OrtStatus *avl_inputs(const OrtKernelContext *context, const size_t *ranks, size_t count,
                      avl_tensor *to);
// Runs a task for every 16 of `rows`: fewer are not divided, as waking other threads would take longer.
// It is given `work`, the first row and the one behind the last.
OrtStatus *avl_for_rows(OrtKernelContext *context, avl_rows_task *task, int64_t rows, void *work);
// The bias of one of a linear's weights, one number for each output; the op says what is taken of the sums.
OrtStatus *avl_bias(const OrtKernelContext *context, const avl_linear_op *op, size_t weight,
                    int64_t outputs, avl_epilogue *to);
OrtStatus *avl_constant(const OrtKernelInfo *info, size_t index, avl_tensor *to);
// The output's memory is left in *data, a pointer of the output's type.
OrtStatus *avl_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank,
                      void *data);

#endif
