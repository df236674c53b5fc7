"""Policies that keep a part of a prompt's rows, text and image alike: a file for each."""
