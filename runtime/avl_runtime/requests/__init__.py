"""Requests to a loaded package."""
