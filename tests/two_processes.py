"""Runs a function on two gloo processes of this machine, for the tests of distributed training.

Tests are not a package, so a test file first makes this one importable::

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from two_processes import run_on_two_processes
"""

import importlib.util
import pickle
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD_SIZE = 2


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = sys.modules[function.__module__].__file__
    context = mp.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(WORLD_SIZE)]
    processes = [
        context.Process(target=_work, args=(rank, port, pipes[rank][1], file, function.__name__, args))
        for rank in range(WORLD_SIZE)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # so that a process that dies ends the wait below
    try:
        results = [pickle.loads(receiver.recv_bytes()) for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _work(rank: int, port: int, sender: Connection, file: str, name: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=timedelta(seconds=60),
    )
    try:
        # Plain pickle: multiprocessing's own would share the tensors' memory, which ends with this process.
        sender.send_bytes(pickle.dumps(_load(file, name)(*args)))
    except Exception as error:
        sender.send_bytes(pickle.dumps(error))
    finally:
        sender.close()
        dist.destroy_process_group()


def _load(file: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    return function
