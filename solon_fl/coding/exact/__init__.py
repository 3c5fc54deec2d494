"""The code over a finite field, which recovers gradients bit for bit, and its decoder."""
