"""Other libraries as workers of avl-bench.

They run under any Python that has their library, so they import nothing of avl but the
standard-library part of `avl_runtime.bench`.
"""
