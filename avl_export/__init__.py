"""Turns a Hugging Face vision-language checkpoint into an avl package."""
