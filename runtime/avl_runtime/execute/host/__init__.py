"""The decoder on a CPU."""
