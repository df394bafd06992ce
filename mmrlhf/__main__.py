"""The command: `mmrlhf` where the package is installed, `python -m mmrlhf`, and `python run.py` in a checkout."""

import os
import signal
import sys

# Before any import that reads them: no fork warnings from tokenizers, no banners between our own lines.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Modules of the user's own that a config names lie in the current folder, which only `python -m` looks in by itself.
if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())


def main() -> None:
    """Run the command; Ctrl-C ends it with one sentence and exit code 130, also while it is still being imported."""
    try:
        from mmrlhf.app import main as run

        run()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; the same command goes on from what is finished", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed at the end
        sys.exit(128 + signal.SIGPIPE)


if __name__ == "__main__":
    main()
