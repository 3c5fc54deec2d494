"""Starts a SuperLink, its SuperNodes and a run, on one machine or under Slurm, and injects faults for tests.

Each task of a Slurm job runs ``python -m solon_fl.launch APP``. Nothing here imports torch before a node lies.
"""
