"""A Hugging Face checkpoint: found, opened without running anything of it, and mapped."""
