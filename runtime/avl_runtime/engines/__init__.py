"""Builds TensorRT and TensorRT-RTX engines of a package's graphs."""
