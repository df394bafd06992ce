"""The command: `mmrlhf` where the package is installed, `python -m mmrlhf`, and `python run.py` in a checkout."""

import os
import sys

# Before any import that reads them: no fork warnings from tokenizers, no banners between our own lines.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Modules of the user's own that a config names lie in the current folder, which only `python -m` looks in by itself.
if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())

from mmrlhf.app import main  # noqa: E402

if __name__ == "__main__":
    main()
