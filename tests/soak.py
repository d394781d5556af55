"""A soak: a small run of two processes is killed, signalled and starved of disk again and again, and compared when it ends.

    python tests/soak.py --faults 200 --seed 0 --out DIR

Each start is the real command line, always the same (`--run_name NAME --ckpt_path auto`), and meets one fault or two at moments
that are drawn from the seed. A run that has come to its end is compared with one that was never stopped: weights, figures,
validations, best checkpoint, thresholds, files; then the next run begins. `DIR/journal.jsonl` has a line for each start and each
end; a soak that is itself stopped goes on where it was. It needs Linux, and root for the full disk (a small tmpfs); without root
the first process is forbidden to write instead. Two processes take some 15 CPU seconds to start: 200 faults take an hour or more.
`--preload 3` starts three of four runs by forking from a server that has imported everything (support/warm_processes.py): four times as
quick, all else is the same.
Not a part of the test suite.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

import torch  # noqa: E402

from same_end import differences, doubled  # noqa: E402
from tiny_run import ROOT, tiny_config, write_config, write_crops, write_pairs  # noqa: E402
from warm_processes import WarmProcess, living  # noqa: E402

EPOCHS, STEPS_PER_EPOCH, BATCH = 8, 20, 4  # the batch of each of two processes
STEPS_BETWEEN_SAVES = 5
SECONDS_TO_END = 15.0
"""In which all processes of a run must be gone after whatever ended it."""
SECONDS_OF_PATIENCE = 240.0


@dataclass(frozen=True)
class Moment:
    """When in a start a fault comes: some time into its start-up, or after so many savings of `last.ckpt`."""

    starting: bool
    saves: int
    in_a_save: bool
    delay: float

    def __str__(self) -> str:
        if self.starting:
            return f"{self.delay:.0%} into the start"
        return f"in save {self.saves + 1}" if self.in_a_save else f"{self.delay * 1000:.0f} ms after save {self.saves}"


@dataclass(frozen=True)
class Fault:
    """What happens, and to whom: "rank 0", "rank 1", "all", or the disk."""

    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def draw(rng: random.Random) -> tuple[Moment, list[Fault]]:
    """A moment, and one fault or two, the second shortly after the first."""
    starting, in_a_save = rng.random() < 0.2, rng.random() < 0.3
    moment = Moment(starting, rng.randrange(6), in_a_save, rng.random() * (1.0 if starting else 0.4))
    faults = [_fault(rng)]
    if rng.random() < 0.5:
        faults.append(_fault(rng))
    return moment, faults


def _fault(rng: random.Random) -> Fault:
    kind = rng.choices(["SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "full disk", "no more writing"], [6, 3, 3, 3, 3, 1])[
        0
    ]
    if kind.startswith("SIG"):
        return Fault(kind, rng.choice(["rank 0", "rank 1", "all"]))
    return Fault(kind, "")


class Start:
    """One start of a run: its processes, and what they print."""

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path, preloaded: bool) -> None:
        reader, writer = os.pipe()
        self.began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"PYTHONPATH": str(TESTS / "support")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [str(ROOT / "main.py"), *arguments]
        self.launcher: WarmProcess | subprocess.Popen[bytes]
        with os.fdopen(writer, "wb") as output:
            if preloaded:
                self.launcher = WarmProcess(*command, cwd=folder, env=environment, stdout=output, stderr=output)
            else:
                self.launcher = subprocess.Popen(
                    [sys.executable, *command],
                    cwd=folder,
                    env=environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
        self._folder, self._log = folder, log
        self._reader = threading.Thread(target=self._copy, args=(reader,), daemon=True)
        self._reader.start()

    def _copy(self, reader: int) -> None:
        with self._log.open("ab") as log:
            while data := os.read(reader, 65536):
                log.write(data)
                log.flush()
        os.close(reader)

    def processes(self) -> dict[int, int]:
        """Those that live, by rank. (Loader workers are not used.)"""
        alive = living(self._folder)
        others = [pid for pid in alive if pid != self.launcher.pid]
        return {
            **({0: self.launcher.pid} if self.launcher.pid in alive else {}),
            **({1: min(others)} if others else {}),
        }

    def kill(self) -> None:
        """All of them."""
        for pid in living(self._folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()

    def text(self) -> str:
        self._reader.join(5)
        return self._log.read_text(errors="replace")


def _die_with_parent() -> None:
    """A soak that is killed leaves no run behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Soak:
    """Starts runs, stops them, and compares them."""

    def __init__(self, out: Path, seed: int, preload: int) -> None:
        self.out, self.seed, self.preload = out.resolve(), seed, preload
        self.journal = self.out / "journal.jsonl"
        self.expected = self.out / "reference"
        self.disk = self.out / "disk"
        self.logs = self.out / "logs"
        self.startup = 20.0
        for folder in (self.disk, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        (self.disk / "filler").unlink(missing_ok=True)
        self.mounted = self._mount()
        self.config = self._write_data()

    def run(self, wanted: int) -> bool:
        """Faults until `wanted` have struck; returns whether all ends were as they should be."""
        rows = [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.exists() else []
        if not self.expected.exists():
            self._reference()
        struck = sum(len(row.get("struck", ())) for row in rows)
        number = sum("ended" in row for row in rows)
        count = sum(row.get("run") == number and "start" in row for row in rows)
        while struck < wanted or count:
            row = self._start(number, count, faults=struck < wanted)
            struck, count = struck + len(row["struck"]), count + 1
            print(
                f"{struck} faults  run {number} start {row['start']}: {row['struck']} {row['status']} {row['problems']}",
                flush=True,
            )
            if row["finished"]:
                self._finish(number, count)
                number, count = number + 1, 0
        return report(self.journal)

    def _start(self, run: int, count: int, faults: bool) -> dict[str, Any]:
        rng = random.Random(f"{self.seed} {run} {count}")
        moment, planned = draw(rng)
        name = f"run{run:03d}"
        preloaded = run % (self.preload + 1) < self.preload
        start = Start(self._arguments(name), self.out, self.logs / f"{name}-start{count:03d}.log", preloaded)
        struck: list[str] = []
        since = None
        if faults and self._await(start, moment, self._folder(name)):
            for fault in planned:
                if self._strike(start, fault):
                    struck.append(f"{fault} @ {moment if not struck else 'then'}")
                    since = time.monotonic()
                if start.launcher.poll() is not None or (fault.target == "all" and fault.kind == "SIGKILL"):
                    break
                time.sleep(rng.random() * 2)
        hung = self._wait(start, since)
        seconds = None if since is None else time.monotonic() - since
        (self.disk / "filler").unlink(missing_ok=True)
        status, text = start.launcher.returncode, start.text()
        finished = status == 0 and "stopped by" not in text
        problems = ([hung] if hung else []) + self._look(text, status, planned[: len(struck)], moment)
        row: dict[str, Any] = {"run": run, "start": count, "preloaded": preloaded, "struck": struck, "status": status}
        row |= {
            "finished": finished,
            "seconds": None if seconds is None else round(seconds, 2),
            "last": text.strip().splitlines()[-1:],
            "problems": problems,
        }
        self._note(row)
        return row

    def _await(self, start: Start, moment: Moment, folder: Path) -> bool:
        """Waits for the moment; False if the run ended before."""
        checkpoints = folder / "checkpoints"
        before = len(list(folder.glob("events*")))
        running: Callable[[], bool] = lambda: start.launcher.poll() is None  # noqa: E731
        if moment.starting:
            time.sleep(moment.delay * self.startup)
            return running()
        while running() and len(list(folder.glob("events*"))) == before:
            time.sleep(0.05)
        self.startup = time.monotonic() - start.began
        last, saves = _version(checkpoints / "last.ckpt"), 0
        while running() and saves < moment.saves:
            time.sleep(0.003)
            if (now := _version(checkpoints / "last.ckpt")) != last:
                last, saves = now, saves + 1
        if moment.in_a_save:
            while running() and not any(checkpoints.glob(".*.tmp")):
                time.sleep(0.001)
        else:
            time.sleep(moment.delay)
        return running()

    def _strike(self, start: Start, fault: Fault) -> bool:
        """Whether there was anything left to strike."""
        processes = start.processes()
        if fault.kind == "full disk" and os.path.ismount(self.disk):  # never the machine's own
            _fill(self.disk / "filler")
            return 0 in processes
        if not fault.kind.startswith("SIG"):
            with suppress(ProcessLookupError):
                resource.prlimit(start.launcher.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return 0 in processes
        chosen = [pid for rank, pid in processes.items() if fault.target in ("all", f"rank {rank}")]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[fault.kind])
        return bool(chosen)

    def _wait(self, start: Start, since: float | None) -> str:
        """Waits until every process is gone; what is left then is killed, and named."""
        patience = time.monotonic() + SECONDS_OF_PATIENCE * (1 if since else 5)
        while start.launcher.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        hung = "the launcher hangs" if start.launcher.poll() is None else ""
        end = time.monotonic() + SECONDS_TO_END
        while not hung and (left := living(self.out)) and time.monotonic() < end:
            time.sleep(0.05)
        if not hung and left:
            hung = f"{len(left)} processes live on {SECONDS_TO_END:.0f} s after the launcher's end"
        start.kill()
        return hung

    def _look(self, text: str, status: int, struck: Sequence[Fault], moment: Moment) -> list[str]:
        """What a user would not expect to see."""
        found = []
        if "Traceback (most recent call last)" in text or "frame #0" in text:
            found.append("a traceback")
        if not moment.starting and struck and status not in _expected(struck):
            found.append(f"status {status}")
        if not struck and status != 0:
            found.append(f"status {status} without a fault")
        last = (text.strip().splitlines() or [""])[-1]
        if not moment.starting and status not in (0, -9) and not last.startswith("facelit: "):
            found.append(f"the last line is: {last[:200]}")
        return found

    def _finish(self, run: int, starts: int) -> None:
        folder = self._folder(f"run{run:03d}")
        found = differences(folder, self.expected)
        said = [self._validations(f"run{run:03d}"), self._validations("reference")]
        if said[0] != said[1]:
            found.append(f"log: validations {sorted(said[0] ^ said[1])}")
        self._note({"run": run, "ended": True, "starts": starts, "doubled": doubled(folder), "differences": found})
        if found:
            shutil.copytree(folder, self.out / "different" / folder.name, dirs_exist_ok=True)
        shutil.rmtree(folder)

    def _validations(self, name: str) -> set[str]:
        logs = self.logs.glob(f"{name}-start*.log")
        return {
            line
            for log in logs
            for line in re.findall(r"^tiny at step .*$", log.read_text(errors="replace"), re.MULTILINE)
        }

    def _reference(self) -> None:
        log = self.logs / "reference-start000.log"
        start = Start(self._arguments("reference"), self.out, log, preloaded=self.preload > 0)
        self._wait(start, None)
        if start.launcher.returncode != 0:
            raise SystemExit(f"the uninterrupted run failed: {log}")
        shutil.rmtree(self.expected.with_name("unfinished"), ignore_errors=True)
        shutil.copytree(self._folder("reference"), self.expected.with_name("unfinished"))
        self.expected.with_name("unfinished").rename(self.expected)
        shutil.rmtree(self._folder("reference"))
        self._note({"reference": True, "seconds": round(time.monotonic() - start.began, 1)})

    def _arguments(self, name: str) -> list[str]:
        return [
            *("fit", "--config", str(self.config)),
            *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
            *(
                "--run_name",
                name,
                "--ckpt_path",
                "auto",
                "--last_checkpoint.every_n_train_steps",
                str(STEPS_BETWEEN_SAVES),
            ),
        ]

    def _folder(self, name: str) -> Path:
        return self.disk / "runs" / "soak" / name

    def _write_data(self) -> Path:
        crops = self.out / "crops"
        if not (self.out / "tiny.yaml").exists():
            people = STEPS_PER_EPOCH
            write_crops(crops, people, 2 * BATCH)
            next(crops.glob("*_07/*_0007.png")).write_bytes(b"no image")  # found out, and listed, once
            write_pairs(self.out / "pairs.txt")
        folder = {"save_dir": str(self.disk / "runs"), "name": "soak"}
        loggers = [
            {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": folder},
            {
                "class_path": "pytorch_lightning.loggers.CSVLogger",
                "init_args": {**folder, "flush_logs_every_n_steps": 1},
            },
        ]
        changes: dict[str, Any] = {
            "data__batch_size": BATCH,
            "data__on_bad_image": "skip",
            "trainer__max_epochs": EPOCHS,
            "trainer__log_every_n_steps": 2,
            "trainer__logger": loggers,
        }
        return write_config(self.out, tiny_config(self.out, **changes))

    def _mount(self) -> bool:
        if os.path.ismount(self.disk):
            return True
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.disk)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _note(self, row: dict[str, Any]) -> None:
        with self.journal.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Gives the disk back."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)


def report(journal: Path) -> bool:
    """Prints the sums of the journal."""
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    ends = [row for row in rows if "ended" in row]
    problems = [f"run {row['run']} start {row['start']}: {text}" for row in rows for text in row.get("problems", ())]
    found = [f"run {row['run']}: {text}" for row in ends for text in row["differences"]]
    kinds = [text.partition(" @ ")[0] for row in rows for text in row.get("struck", ())]
    seconds = sorted(row["seconds"] for row in rows if row.get("struck") and row.get("seconds") is not None)
    real = sum(len(row["struck"]) for row in rows if "start" in row and not row["preloaded"])
    starts = sum("start" in row for row in rows)
    print(f"{len(kinds)} faults ({real} of them without preloading) in {starts} starts of {len(ends)} runs")
    for kind in sorted({*kinds}):
        print(f"  {kinds.count(kind):4} x {kind}")
    if seconds:
        print(
            f"seconds to the end of the last process: median {seconds[len(seconds) // 2]:.1f}, longest {seconds[-1]:.1f}"
        )
    print(f"{len(found)} differences, {len(problems)} problems", *found, *problems, sep="\n  ")
    return not found and not problems


def _expected(struck: Sequence[Fault]) -> set[int]:
    """Exit statuses that docs/clusters.md promises for any of these faults."""
    statuses = {0}
    for fault in struck:
        if fault.kind == "SIGKILL":
            statuses |= {-9} if fault.target in ("rank 0", "all") else {2}
        elif fault.kind.startswith("SIG"):
            statuses.add(128 + signal.Signals[fault.kind])
        else:
            statuses.add(2)
    if sum(fault.kind.startswith("SIG") for fault in struck) == 2:
        statuses |= {2, *(-signal.Signals[fault.kind] for fault in struck if fault.kind.startswith("SIG"))}
    return statuses


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0")


def main() -> None:
    parser = argparse.ArgumentParser(description="Stops runs at random, goes on with them, and compares their ends.")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preload", type=int, default=0, metavar="N", help="of N + 1 runs, N are forked (see above)")
    parser.add_argument("--report", action="store_true", help="only print the sums of the journal")
    options = parser.parse_args()
    if options.report:
        sys.exit(not report(options.out / "journal.jsonl"))
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has the jobs behind it ignore Ctrl-C
    soak = Soak(options.out, options.seed, options.preload)
    right = soak.run(options.faults)
    soak.close()
    sys.exit(not right)


if __name__ == "__main__":
    main()
