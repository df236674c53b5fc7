// Packs a weight of QuantizedLinear and its like from the tensors that a graph has.
#include "ort_linear.h"

#include "halves.h"
#include "ort_op.h"
#include "unmap.h"

#include <stdlib.h>

enum { ALIGNMENT = 64 };

// What a weight is made from.
typedef struct {
    avl_tensor codes, scales, zeros; // no zeros: rank 0
    int64_t block; // inputs that share a scale; 0: all of an output's
} source;

// `tensors` of them are inputs of the op, from the one at `index` on.
static OrtStatus *read_source(const OrtKernelInfo *info, size_t index, size_t tensors, source *from)
{
    OrtStatus *status;
    if ((status = avl_api->KernelInfoGetAttribute_int64(info, "block_size", &from->block)) ||
        (status = avl_constant(info, index, &from->codes)) ||
        (status = avl_constant(info, index + 1, &from->scales)))
        return status;
    return tensors == 3 ? avl_constant(info, index + 2, &from->zeros) : NULL;
}

// Whether a tensor is [blocks, outputs], or [outputs] with one block an output.
static int is_table(const avl_tensor *table, const source *from, const avl_packed *weight)
{
    if (!from->block)
        return table->rank == 1 && table->dims[0] == weight->outputs;
    return table->rank == 2 && table->dims[0] == weight->inputs / from->block &&
           table->dims[1] == weight->outputs;
}

// Whether 16 bits hold the scales as they are: those of exporters that round them, and of checkpoints
// that store them so. In blocks of 64 codes of 4 bits a step reads a twentieth less then.
static int are_halves(const float *scales, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (of_half(to_half(scales[i])) != scales[i])
            return 0;
    return 1;
}

static OrtStatus *measure(const source *from, avl_packed *weight)
{
    if (from->codes.rank != 2 || (from->codes.type != ORT_INT4 && from->codes.type != ORT_INT8))
        return avl_failed("expected INT4 or INT8 codes [inputs, outputs]");
    weight->inputs = from->codes.dims[0];
    weight->outputs = from->codes.dims[1];
    weight->bits = from->codes.type == ORT_INT4 ? 4 : 8;
    weight->has_zeros = from->zeros.rank != 0;
    int64_t block = from->block ? from->block : weight->inputs;
    weight->span = avl_span_of(block);
    if (!weight->span || weight->inputs % block || (weight->bits == 4 && weight->outputs % 2))
        return avl_failed("expected blocks of a multiple of 32 inputs and, of INT4, even outputs");
    if (!is_table(&from->scales, from, weight) ||
        (weight->has_zeros &&
         (!is_table(&from->zeros, from, weight) || from->zeros.type != from->codes.type)))
        return avl_failed("expected scales and zero points [inputs / block, outputs], or [outputs] "
                          "without blocks, and zero points of the codes' type");
    return NULL;
}

static OrtStatus *pack(const avl_quantized_kernels *with, const source *from, avl_packed *weight)
{
    OrtStatus *status = measure(from, weight);
    if (status)
        return status;
    const int64_t block = from->block ? from->block : weight->inputs;
    const int64_t scales = weight->inputs / block * weight->outputs;
    weight->has_halves = are_halves(from->scales.data, scales);
    const int64_t bytes = with->bytes(weight);
    weight->pieces = aligned_alloc(ALIGNMENT, (size_t)bytes);
    if (bytes && !weight->pieces)
        return avl_failed("expected memory for weights, found none");
    for (int64_t tile = 0; tile < with->tiles(weight); tile++)
        with->pack(weight, tile, from->codes.data, from->scales.data, from->zeros.data, block);
    avl_unmap(from->codes.data, (size_t)(weight->inputs * weight->outputs * weight->bits / 8));
    avl_unmap(from->scales.data, (size_t)scales * sizeof(float));
    if (weight->has_zeros)
        avl_unmap(from->zeros.data, (size_t)(scales * weight->bits / 8));
    return NULL;
}

OrtStatus *avl_pack_weight(const OrtKernelInfo *info, size_t index, size_t tensors,
                           const avl_quantized_kernels *with, avl_packed *weight)
{
    source from = {0};
    OrtStatus *status = read_source(info, index, tensors, &from);
    return status ? status : pack(with, &from, weight);
}
