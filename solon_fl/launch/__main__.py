"""What each task of a Slurm job runs; ``python -m solon_fl.launch --help`` says how."""

from solon_fl.launch.command import program

if __name__ == "__main__":
    program()
