"""TensorRT-RTX in the place of TensorRT, which cannot be installed without a GPU.

It has the same builder, parser and network; plugins it has not.
"""

from tensorrt_rtx import *  # noqa: F403

__version__ = "11.4.0"
