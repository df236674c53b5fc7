"""Modality-aware attention ops, and the policies that decide which cache rows they read."""
