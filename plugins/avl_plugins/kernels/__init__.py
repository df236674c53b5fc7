"""Triton kernels of attention, of moves of rows and of selections, and a naive form of each.

`catalog` and `naive` need no Triton: they are what runs and checks the packaged PTX.
"""
