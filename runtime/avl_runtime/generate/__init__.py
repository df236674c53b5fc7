"""One reply: prefill, decode, the choice of tokens, and the result."""
