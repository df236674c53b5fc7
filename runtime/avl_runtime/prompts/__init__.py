"""What callers say, as the arrays that prefill reads; and ids back to text."""
