"""Tests of what a user touches: pictures, prompts, text, sampling, heatmaps, command line."""
