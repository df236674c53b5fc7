"""Decoders, whatever their family: what is read of their configuration, and how they are traced."""
