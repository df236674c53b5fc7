// Linear layers whose weights are codes of 4 or 8 bits: what the kernel of QuantizedLinear computes.
//
// Rows of x are rounded to 8 bits as well, with a scale for every span of inputs, and multiplied
// with the codes in whole numbers, of which processors add up four at a time, or so they do if they
// can. For many rows there may be AMX (linear_amx.h), which reads the weights of AVX-512.
#ifndef AVL_QUANTIZED_H
#define AVL_QUANTIZED_H

#include <stddef.h>
#include <stdint.h>

// A weight [inputs, outputs], its codes and scales in the order in which they are read.
//
// The outputs of four registers, 64 for AVX-512, are a tile, and a span of a tile is a piece: codes,
// for every four inputs those of output 0, of output 1 and so on; then the scales of the outputs, in
// 16 bits where those of all pieces are numbers of binary16; then, if codes have zero points, what the
// outputs' codes are for 0, as 16 bits. Codes of 4 bits
// have no sign, of 8 bits it depends on the level (pieces.h). Those of 4 bits share bytes: the outputs
// of the first register (and the third) have the low half, of the second (and fourth) the high one.
typedef struct avl_packed {
    int64_t inputs, outputs;
    int64_t span; // inputs of an output that share a scale: 32, 64 or 128, and a divisor of inputs
    int64_t bits; // 4, with an even number of outputs, or 8
    int64_t has_zeros, has_halves;
    uint8_t *pieces; // [tiles, spans, piece]; as many as kernels say
} avl_packed;

// The most inputs that may share a rounding, of those that share a scale; 0: no kernel takes these.
static inline int64_t avl_span_of(int64_t block)
{
    for (int64_t span = 128; span >= 32; span /= 2)
        if (block > 0 && block % span == 0)
            return span;
    return 0;
}

// Rows of x, rounded. A span of all rows lies together: rows of many inputs, far apart, would displace
// each other from the first two caches.
typedef struct avl_rounded {
    int64_t rows;
    int8_t *codes; // [spans, rows, span]
    float *scales; // [spans, rows]
    int32_t *sums; // [spans, rows], of a span's codes
} avl_rounded;

// What quantized.c is compiled to for one level of the processor's instructions. A weight is for the
// level that packed it alone.
typedef struct avl_quantized_kernels {
    int64_t tile_outputs; // of a tile, but for the last
    int64_t (*tiles)(const avl_packed *weight);
    int64_t (*bytes)(const avl_packed *weight); // of its pieces
    // Fills a tile from signed codes [inputs, outputs], of which 4 bits have the even output in the
    // low half, scales [inputs / block, outputs] and zero points like them, which are codes, or none
    // (NULL). `block` is a multiple of the span.
    void (*pack)(const avl_packed *weight, int64_t tile, const uint8_t *codes, const float *scales,
                 const uint8_t *zeros, int64_t block);
    // Rounds a row of x [rows, inputs].
    void (*round)(const avl_packed *weight, const float *x, const avl_rounded *to, int64_t row);
    // Fills the columns of a tile in y [rows, outputs].
    void (*multiply)(const avl_packed *weight, const avl_rounded *x, int64_t tile, float *y);
} avl_quantized_kernels;

// NULL where the compiler did not know a level.
extern const avl_quantized_kernels *const avl_quantized_avx2, *const avl_quantized_avx_vnni,
    *const avl_quantized_avx512, *const avl_quantized_neon, *const avl_quantized_dotprod,
    *const avl_quantized_i8mm;

#endif
