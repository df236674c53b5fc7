"""The KV cache: which row is where, and the only code that moves rows."""
