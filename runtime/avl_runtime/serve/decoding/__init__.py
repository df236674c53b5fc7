"""Decoding pictures of strangers in processes that can be ended: `worker` runs in them."""
