"""What encoders of several families are made of."""
