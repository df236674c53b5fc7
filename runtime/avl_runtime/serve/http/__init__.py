"""Connections, bodies, keys and addresses; nothing here knows what is asked."""
