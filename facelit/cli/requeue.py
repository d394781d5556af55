"""Putting a SLURM job back into the queue when its time is nearly over."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

from facelit.lightning import default_store, is_first_process

_KEY = "facelit/requeued"


def requeue_first(goes_on: bool) -> None:
    """Process 0 puts the job back into the queue; the others wait until it has, or is gone. Every process calls this.

    `srun --kill-on-bad-exit` ends all processes when the first one ends with a status, `scontrol` among them.

    Args:
        goes_on: Whether the same command will go on with the run; otherwise the job is not requeued.
    """
    store = default_store()
    if is_first_process():
        requeue(goes_on)
    with suppress(RuntimeError):  # it was in a process that is gone, or the time is over
        if store is not None and is_first_process():
            store.set(_KEY, "")
        elif store is not None:
            store.wait([_KEY], timedelta(seconds=30))


def requeue(goes_on: bool) -> None:
    """Calls `scontrol requeue` for this job.

    Args:
        goes_on: Whether the same command will go on with the run; otherwise the job is not requeued.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
    if not goes_on:
        said = "not requeued: without --ckpt_path auto --run_name NAME the job would start over."
    else:
        try:
            ended = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            said = "requeued." if ended == 0 else f"scontrol requeue ended with status {ended}; not requeued."
        except OSError as error:
            said = f"not requeued: {error}"
    print(f"facelit: SLURM job {job}: {said}", file=sys.stderr)
