"""IJB-C's protocol at its real size, on simulated embeddings: reading, templates, 15.7 million pairs, searches in two galleries.

3,531 people, 469,375 images, 23,124 templates, 15,658,489 pairs: the numbers of IJB-C. Embeddings of 512 numbers lie in random directions around
their person's. Everything that `facelit ijb` does after embedding runs in one process on one thread; its peak memory includes the
961 MB of embeddings, which are mapped from a file. The baseline is the 1:1 arithmetic of the usual scripts in a process of its own: a
product of two gathered blocks of float64, 100,000 pairs at a time, and scikit-learn's `roc_curve`, whose TARs must agree.

    python benchmarks/ijb_protocol.py [--scale 1.0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from facelit.data.ijb import read_ijb
from facelit.verification.template_evaluation import identify_templates, verify_templates
from facelit.verification.templates import image_weights, pool_templates
from harness.process_memory import peak_resident_bytes, resident_bytes
from harness.reporting import machine, print_header, print_table, write_json

PEOPLE, PROBES, IMAGES, IMPOSTORS, LENGTH = 3_531, 19_593, 469_375, 15_638_896, 512
NOISE = 8.0
FARS = (1e-4, 1e-3, 1e-2)


def write_set(root: Path, scale: float) -> None:
    """Writes the meta files and the embeddings, image by image."""
    rng = np.random.default_rng(0)
    people, probes, images, impostors = (max(60, int(scale * count)) for count in (PEOPLE, PROBES, IMAGES, IMPOSTORS))
    meta = root / "meta"
    meta.mkdir()
    (root / "loose_crop").mkdir()
    subject = np.concatenate([np.arange(people), rng.integers(0, people, probes)])
    template = np.concatenate([np.arange(len(subject)), rng.integers(0, len(subject), images - len(subject))])
    names = pa.array([f"{number}.jpg" for number in range(1, images + 1)])
    _write(meta / "ijbc_face_tid_mid.txt", [names, template, rng.integers(0, 8, images)])
    points = [np.round(rng.uniform(30, 90, images), 3) for _ in range(10)]
    _write(meta / "ijbc_name_5pts_score.txt", [names, *points, np.round(rng.uniform(0.3, 1, images), 3)])
    others = rng.integers(people, len(subject), impostors)
    first = (subject[others] + rng.integers(1, people, impostors)) % people
    genuine = np.arange(people, len(subject))
    pairs = [np.append(subject[genuine], first), np.append(genuine, others), np.arange(probes + impostors) < probes]
    _write(meta / "ijbc_template_pair_label.txt", [column.astype(np.int32) for column in pairs])
    is_probe = template >= people
    for name, chosen in (
        ("gallery_G1", ~is_probe & (template < people // 2)),
        ("gallery_G2", ~is_probe & (template >= people // 2)),
        ("probe_mixed", is_probe),
    ):
        _write(meta / f"ijbc_1N_{name}.csv", [template[chosen], subject[template[chosen]]], ",")
    centres = rng.standard_normal((people, LENGTH), dtype=np.float32)
    embeddings = np.lib.format.open_memmap(root / "embeddings.npy", "w+", np.float32, (images, LENGTH))
    for start in range(0, images, 8192):
        block = slice(start, start + 8192)
        own = centres[subject[template[block]]]
        embeddings[block] = own + NOISE * rng.standard_normal(own.shape, dtype=np.float32)


def _write(path: Path, columns: list[Any], delimiter: str = " ") -> None:
    table = pa.table({str(number): column for number, column in enumerate(columns)})
    csv.write_csv(table, path, csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none"))


def measure_facelit(root: Path) -> dict[str, Any]:
    """Seconds of each part, TARs, and memory in bytes: before, and the peak."""
    seconds: dict[str, list[float]] = {}
    before = resident_bytes()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, busy = perf_counter(), process_time()
        result = work()
        seconds[name] = [perf_counter() - start, process_time() - busy]
        return result

    found = timed("reading", lambda: read_ijb(root))
    embeddings = np.load(root / "embeddings.npy", mmap_mode="r")
    order = np.array([int(path.stem) - 1 for path in found.paths])
    assert (np.diff(order) == 1).all()
    weights = timed("weights", lambda: image_weights(embeddings, found.scores, "equal"))
    pooled = timed("templates", lambda: pool_templates(embeddings, weights, found.rows, len(found.template_ids)))
    one = timed("1:1", lambda: verify_templates(pooled, found.template_ids, found.pairs))
    many = timed("1:N", lambda: identify_templates(pooled, found.galleries, found.probes))
    np.savez(root / "pairs.npz", pooled, *found.pairs)
    return {
        "seconds": seconds,
        "before": before,
        "peak": peak_resident_bytes(),
        "tar": {f"{far:g}": one.at_far[far].tar.value for far in FARS if far in one.at_far},
        "rank_1": many.ranks[1].value,
    }


def measure_plain(root: Path) -> dict[str, Any]:
    """Seconds of the 1:1 arithmetic, and TARs, of what `measure_facelit` left."""
    from sklearn.metrics import auc, roc_curve

    saved = np.load(root / "pairs.npz")
    pooled, first, second, label = (saved[name] for name in ("arr_0", "arr_1", "arr_2", "arr_3"))
    rows = pooled.astype(np.float64)
    before, start, busy = resident_bytes(), perf_counter(), process_time()
    scores = np.zeros(len(first))
    for begin in range(0, len(first), 100_000):
        block = slice(begin, begin + 100_000)
        scores[block] = np.sum(rows[first[block]] * rows[second[block]], -1)
    far, tar, _ = roc_curve(label, scores)
    auc(far, tar)
    tars = {f"{target:g}": float(tar[np.searchsorted(far, target, side="right") - 1]) for target in FARS}
    seconds = {"1:1": [perf_counter() - start, process_time() - busy]}
    return {"seconds": seconds, "before": before, "peak": peak_resident_bytes(), "tar": tars}


def in_a_process(name: str, root: Path) -> dict[str, Any]:
    """One measurement, on one thread."""
    command = [sys.executable, __file__, "--measure", name, "--root", str(root)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | one_thread).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    """Prints a row for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of IJB-C's numbers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=["facelit", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure = {"facelit": measure_facelit, "plain": measure_plain}[arguments.measure]
        print(json.dumps(measure(arguments.root)))
        return
    about = machine(["numpy", "scikit-learn"])
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), arguments.scale)
        own, plain = (in_a_process(name, Path(folder)) for name in ("facelit", "plain"))
    print_header(f"IJB-C's numbers x {arguments.scale:g}", about)
    rows = [
        [who, part, f"{wall:.1f} s", f"{busy:.1f} s"]
        for who, result in (("facelit", own), ("plain", plain))
        for part, (wall, busy) in result["seconds"].items()
    ]
    print_table(["", "part", "time", "of the processor"], rows)
    for who, result in (("facelit", own), ("plain", plain)):
        print(
            f"{who}: {result['before'] / 1e9:.2f} GB before, {result['peak'] / 1e9:.2f} GB at its peak; TAR {result['tar']}"
        )
    print(f"rank 1: {own['rank_1']:.4f}")
    write_json(arguments.json, {"machine": about, "facelit": own, "plain": plain})


if __name__ == "__main__":
    main()
