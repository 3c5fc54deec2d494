"""Codes over the real numbers, and their decoder, which tolerates float noise."""
