"""Experiments that measure accuracy, as `benchmarks/` measures speed.

Run from the root of the repository: `python -m experiments.lfw.ten_folds --help`.
"""

import sys
from pathlib import Path

# Tables and facts about the machine come from the benchmarks' harness, a package next to their scripts.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
