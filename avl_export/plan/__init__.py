"""What an export will write, decided before it writes."""
