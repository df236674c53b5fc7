"""Policies that choose image tokens before the decoder's first layer, a file for each."""
