"""Packages compared with transformers, and backends with each other."""
