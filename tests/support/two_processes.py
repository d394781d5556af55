"""Runs a function on two gloo processes of this machine, for the tests of distributed training.

The processes live as long as the test session: starting them takes longer than most tests.
"""

import atexit
import importlib.util
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import timedelta
from io import StringIO
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.distributed as dist

from warm_processes import WarmProcess

WORLD_SIZE = 2


class _Pool:
    """Two processes that form a gloo group and wait for functions to call."""

    def __init__(self) -> None:
        folder = mkdtemp(prefix="facelit-two-")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.processes, self.connections = [], []
        for rank in range(WORLD_SIZE):
            with Listener(f"{folder}/{rank}") as listener:
                self.processes.append(WarmProcess(__file__, rank, folder, env=environment, stderr=sys.__stderr__))
                self.connections.append(listener.accept())

    def call(self, file: str, name: str, args: tuple[Any, ...]) -> list[Any]:
        for connection in self.connections:
            connection.send_bytes(pickle.dumps((file, name, args)))
        return [pickle.loads(connection.recv_bytes()) for connection in self.connections]

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)


_pools: list[_Pool] = []


def run_on_two_processes(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Calls ``function(*args)`` on two processes that form a gloo group.

    The function must stand at the top level of its file: each process imports that file anew, whatever name
    pytest gave it.

    Args:
        function: what to call; its result must be picklable.
        *args: its arguments, picklable.

    Returns:
        What the function returned on rank 0 and on rank 1.
    """
    if not _pools:
        _pools.append(_Pool())
    file = sys.modules[function.__module__].__file__
    assert file is not None
    try:
        results = _pools[0].call(file, function.__name__, args)
    except BaseException:
        end_processes()
        raise
    for result in results:
        if isinstance(result, BaseException):
            end_processes()  # the other one may still wait for it
            raise result
    return results


def facelit_on_two_processes(*args: object) -> str:
    """Runs the command line under DDP, on processes that were started before, as by torchrun.

    A launch by Lightning itself imports torch and Lightning twice more: a few tests do that, with `facelit`.

    Returns:
        What process 0 logged.

    Raises:
        RuntimeError: a process ended with an error; its message.
    """
    launch = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    log: str = run_on_two_processes(_run_command_line, [*map(str, args), *launch])[0]
    return log


def _run_command_line(arguments: list[str]) -> str:
    from facelit.cli import main

    rank = str(dist.get_rank())
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, GROUP_RANK="0", WORLD_SIZE=str(WORLD_SIZE), TORCHELASTIC_RUN_ID="tests"
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # asked for, not used: the group is formed already
    errors, log = StringIO(), StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("pytorch_lightning")
    logger.addHandler(handler)
    try:
        with redirect_stderr(errors):
            main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(errors.getvalue()) from None
    finally:
        logger.removeHandler(handler)
    return log.getvalue()


@atexit.register
def end_processes() -> None:
    """Ends the processes; the next call starts new ones."""
    while _pools:
        _pools.pop().end()


def _work(rank: int, folder: str) -> None:
    connection: Connection = Client(f"{folder}/{rank}")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=timedelta(seconds=60),
    )
    while True:
        try:
            file, name, args = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            # Plain pickle: multiprocessing's own would share the tensors' memory, which ends with this process.
            answer = pickle.dumps(_load(file, name)(*args))
        except Exception as error:
            answer = pickle.dumps(error)
        connection.send_bytes(answer)


def _load(file: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    return function


if __name__ == "__main__":
    _work(int(sys.argv[1]), sys.argv[2])
