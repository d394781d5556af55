"""What the processes that read images do with signals."""

from __future__ import annotations

import os
import signal
import threading

from facelit.storage.system import ASKING_TO_STOP


def leave_signals_to_main(worker: int) -> None:
    """Keeps a loader's worker alive when a signal goes to the whole group of processes; a `worker_init_fn`.

    Ctrl-C, `torchrun` and `scancel` signal workers, too. One that dies of it ends the run with an error before the main process
    has saved its last step. The main process ends its workers itself: its own SIGTERM is obeyed.

    Args:
        worker: The worker's number.
    """
    for signum in {*ASKING_TO_STOP} - {signal.SIGTERM}:
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True, name="sigterm").start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
