"""NVIDIA's Triton Inference Server: its Python backend, and the repository that it reads.

It has nothing to do with Triton, the language that GPU kernels are written in.
"""
