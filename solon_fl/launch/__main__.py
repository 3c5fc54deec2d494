"""The program that each task of a Slurm job runs; see ``python -m solon_fl.launch --help``."""

from solon_fl.launch.command import program

if __name__ == "__main__":
    program()
