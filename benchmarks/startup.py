"""How long the program takes to respond: fresh processes, alternating between commands, with warm file caches.

The baselines are a bare interpreter and importing pytorch_lightning alone, which every training must wait for.
`python main.py fit --help` prints every option of a training run; its own cost is the time beyond that import.

    python benchmarks/startup.py [--repeats 11] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.reporting import Timing, machine, print_header, print_table, time_in_turns, write_json

ROOT = Path(__file__).resolve().parents[1]
BARE, LIGHTNING = 'python -c ""', 'python -c "import pytorch_lightning"'
COMMANDS: dict[str, list[str]] = {
    BARE: ["-c", ""],
    LIGHTNING: ["-c", "import pytorch_lightning"],
    "python main.py --help": ["main.py", "--help"],
    "facelit check --help": [
        "-c",
        "from facelit.cli import main; main(['check', '--help'])",
    ],  # like its entry point
    "python main.py fit --help": ["main.py", "fit", "--help"],
}


def run(arguments: Sequence[str]) -> None:
    """Runs one fresh process in the project's root; its output is shown only if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stderr}")


def table_rows(timings: dict[str, Timing]) -> list[list[str]]:
    """Medians, and ratios to the baselines'."""
    bare, lightning = timings[BARE].median, timings[LIGHTNING].median
    return [
        [name, timing.milliseconds(), f"{timing.median / bare:.1f} x", f"{timing.median / lightning:.2f} x"]
        for name, timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="fresh processes of each command")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("a spread needs at least 2 repeats")
    facts = machine(["torch", "pytorch-lightning", "jsonargparse"])
    print_header(f"Start-up, {arguments.repeats} fresh processes of each command", facts)
    calls = {name: functools.partial(run, command) for name, command in COMMANDS.items()}
    timings = time_in_turns(calls, dict.fromkeys(calls, arguments.repeats))
    print_table(
        ["command", "median (quartiles)", "of a bare interpreter", "of Lightning's import"], table_rows(timings)
    )
    write_json(arguments.json, {"machine": facts, "commands": {name: t._asdict() for name, t in timings.items()}})


if __name__ == "__main__":
    main()
