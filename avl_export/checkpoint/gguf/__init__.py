"""GGUF files, as llama.cpp reads them: a decoder's, and that of the encoder and projector."""
