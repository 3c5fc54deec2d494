"""Codes over the real numbers, and the decoder that bears float noise."""
