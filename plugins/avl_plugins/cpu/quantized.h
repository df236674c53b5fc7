// Linear layers whose weights are codes of 4 or 8 bits: what the kernel of QuantizedLinear computes.
//
// Rows of x are rounded to 8 bits as well, with a scale for every span of inputs, and multiplied
// with the codes in whole numbers, which AVX-512 VNNI adds up four at a time. For many rows there
// may be AMX (linear_amx.h), which reads the same weights.
#ifndef AVL_QUANTIZED_H
#define AVL_QUANTIZED_H

#include <stdint.h>

// A weight [inputs, outputs], its codes and scales in the order in which they are read.
//
// 64 outputs are a tile, and a span of a tile is a piece: codes without sign, for every four inputs
// those of output 0, of output 1 and so on; then the scales of the 64 outputs; then, if codes have
// zero points, what the outputs' codes without sign are for 0, as 32 bits. Codes of 4 bits share
// bytes: outputs 0 to 15 (32 to 47) have the low half, 16 to 31 (48 to 63) the high one.
typedef struct avl_packed {
    int64_t inputs, outputs;
    int64_t span; // inputs of an output that share a scale: 32, 64 or 128, and a divisor of inputs
    int64_t bits; // 4, with an even number of outputs, or 8
    int64_t has_zeros;
    uint8_t *pieces; // [tiles, spans, piece]; `avl_packed_bytes` of them
} avl_packed;

// Rows of x, rounded.
typedef struct avl_rounded {
    int64_t rows;
    int8_t *codes; // [rows, inputs]
    float *scales; // [rows, spans]
    int32_t *sums; // [rows, spans], of a span's codes
} avl_rounded;

int64_t avl_tiles(const avl_packed *weight);
int64_t avl_packed_bytes(const avl_packed *weight);

// Fills a tile from signed codes [inputs, outputs], of which 4 bits have the even output in the low
// half, scales [inputs / block, outputs] and zero points like them, which are codes, or none (NULL).
// `block` is a multiple of the span.
void avl_pack_tile(const avl_packed *weight, int64_t tile, const uint8_t *codes,
                   const float *scales, const uint8_t *zeros, int64_t block);

// Rounds a row of x [rows, inputs].
void avl_round_row(const avl_packed *weight, const float *x, const avl_rounded *to, int64_t row);

// Fills the columns of a tile in y [rows, outputs].
void avl_multiply_tile(const avl_packed *weight, const avl_rounded *x, int64_t tile, float *y);

#endif
