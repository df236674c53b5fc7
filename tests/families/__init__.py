"""Tests that every model family passes, on small random checkpoints."""
