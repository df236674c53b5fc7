"""Rows of prompts as files: `files` is what one holds, `folder` what lies in a folder of them."""
