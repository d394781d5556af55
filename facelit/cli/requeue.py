"""Putting a SLURM job back into the queue when its time is nearly over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from facelit.cli.run_name import AUTO
from facelit.cli.way_on import ckpt_path_in


def requeue(arguments: Sequence[str]) -> None:
    """Calls `scontrol requeue` for this job, if the same command will go on with the run.

    Args:
        arguments: What the program was started with.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
    if ckpt_path_in(arguments) != AUTO:
        said = "not requeued: without --ckpt_path auto --run_name NAME the job would start over."
    else:
        try:
            ended = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            said = "requeued." if ended == 0 else f"scontrol requeue ended with status {ended}; not requeued."
        except OSError as error:
            said = f"not requeued: {error}"
    print(f"facelit: SLURM job {job}: {said}", file=sys.stderr)
