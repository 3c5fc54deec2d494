"""Comparing strategies under attacks: grids of runs, their results, and the report."""
