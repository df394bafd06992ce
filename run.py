"""Run a chain of stages: `python run.py` for the demo, `python run.py --help` for everything else."""

from mmrlhf.__main__ import main

if __name__ == "__main__":
    main()
