"""Launching: a SuperLink, its SuperNodes and a run, on one machine or under Slurm; and faults to try them with.

``python -m solon_fl.launch APP`` is what each task of a Slurm job runs. Nothing here imports torch before a node lies.
"""
