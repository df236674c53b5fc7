"""Speed and memory of candidates side by side, each in a process of its own.

`wire` and this file import nothing but the standard library: workers of other libraries use them
in environments that lack what the runtime needs.
"""
