"""Triton kernels of the two ops and of the selections between them, and a naive form of each.

`catalog` and `naive` need no Triton: they are what runs and checks the packaged PTX.
"""
