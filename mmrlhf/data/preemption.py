"""The signals that ask a run to stop, and what data-loading workers do about them: nothing."""

from __future__ import annotations

import signal

# SIGTERM: a cluster's last warning; SIGINT: Ctrl-C; SIGUSR1 and SIGUSR2: SLURM's `--signal`
PREEMPTION = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def ignore_preemption(worker: int = 0) -> None:
    """Ignore the signals in a worker process: a cluster sends them to all, and the step still needs its workers."""
    for number in PREEMPTION:
        signal.signal(number, signal.SIG_IGN)
