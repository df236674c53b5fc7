"""A conversation in the terminal: line editing, commands, and what is saved of it."""
