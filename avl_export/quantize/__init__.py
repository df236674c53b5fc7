"""Weights as INT4 or INT8 codes with scales, in the form of ONNX's blocked DequantizeLinear.

ONNX Runtime fuses DequantizeLinear and Gemm into MatMulNBits when it loads a graph; TensorRT takes
the same nodes as weight-only quantization. In graphs that compute in float32 the two are the body
of an op of ours (`avl_export.graph.linears`), for which there is a CPU kernel.
"""
