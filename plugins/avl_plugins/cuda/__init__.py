"""The packaged kernels on one NVIDIA GPU, through its driver: no Triton, no torch."""
