"""KV caches and decode steps on a device: rows stay there and are moved by the packaged kernels."""
