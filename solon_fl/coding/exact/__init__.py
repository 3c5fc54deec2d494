"""The exact code and its decoder, which work over a finite field and recover gradients bit for bit."""
