"""What lies in a package, and how to trust it."""
