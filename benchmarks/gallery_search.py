"""Searching a gallery of people: facelit's exact search and its FAISS index, by the number of people.

Synthetic embeddings of 512 numbers: people in random directions, and photos of them at a cosine of about 0.6 to their person,
roughly as with a good network. A search asks for the five people nearest to one photo, or to each of 64 at once.

"equal" is the share of searches in which FAISS's five answers equal the exact search's, half of them for photos of people in the
gallery, half for strangers. Two further baselines in the same run, for one photo only: the bare product with the gallery in numpy,
and FAISS's own exact index (`IndexFlatIP`).

    python benchmarks/gallery_search.py [--people 10000 100000 1000000] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from facelit.inference import Gallery
from harness.reporting import machine, print_header, print_table, time_in_turns, write_json

LENGTH, PHOTOS, K = 512, 64, 5
COSINE = 0.6
Floats = npt.NDArray[np.float32]


def directions(rng: np.random.Generator, count: int) -> Floats:
    """Random unit vectors, float32 (count, 512)."""
    vectors = rng.standard_normal((count, LENGTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def measure(people: int) -> dict[str, Any]:
    """Measures all figures for one size of gallery."""
    rng = np.random.default_rng(0)
    templates = directions(rng, people)
    away = directions(rng, PHOTOS)
    photos = COSINE * templates[rng.integers(0, people, PHOTOS)] + np.sqrt(1 - COSINE**2).astype(np.float32) * away
    names = [f"p{number}" for number in range(people)]
    exact, indexed = (Gallery(names, templates, np.arange(people), "") for _ in range(2))
    start = perf_counter()
    indexed.use_faiss()
    build = perf_counter() - start
    flat = faiss.IndexFlatIP(LENGTH)
    flat.add(templates)
    asked = np.concatenate([photos, directions(rng, PHOTOS)])
    same = [a == b for a, b in zip(exact.search(asked, K), indexed.search(asked, K), strict=True)]
    calls: dict[str, Callable[[], object]] = {
        "exact, 1 photo": lambda: exact.search(photos[:1], K),
        "exact, 64 photos": lambda: exact.search(photos, K),
        "FAISS, 1 photo": lambda: indexed.search(photos[:1], K),
        "FAISS, 64 photos": lambda: indexed.search(photos, K),
        "numpy product, 1 photo": lambda: photos[:1] @ templates.T,
        "FAISS's exact index, 1 photo": lambda: flat.search(photos[:1], K),
    }
    timings = time_in_turns(calls, dict.fromkeys(calls, 5 if people > 500_000 else 15))
    return {"people": people, "build_seconds": build, "equal": float(np.mean(same))} | {
        name: timing._asdict() for name, timing in timings.items()
    }


def main() -> None:
    """Prints one row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    about = machine(["numpy", "faiss-cpu"])
    print_header(f"{LENGTH} numbers, the {K} nearest", about)
    results = [measure(people) for people in arguments.people]
    timed = [name for name in results[0] if name not in ("people", "build_seconds", "equal")]
    rows = [
        [f"{one['people']:,}", f"{one['build_seconds']:.1f} s", f"{100 * one['equal']:.0f} %"]
        + [f"{1e3 * one[name]['median']:.1f} ms" for name in timed]
        for one in results
    ]
    print_table(["people", "building the index", "equal", *timed], rows)
    write_json(arguments.json, {"machine": about, "sizes": results})


if __name__ == "__main__":
    main()
