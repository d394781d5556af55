"""facelit's heads beside the same losses of pytorch-metric-learning, the package most people take: loss and gradient, given the embeddings.

The losses are checked to be equal, except for semihard: the package's miner keeps every semihard negative of a genuine pair, facelit
the hardest one, as in FaceNet.

    python benchmarks/peers.py [--identities 8631 85742] [--batches 128 512] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ArcFaceLoss, TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import Tensor, nn

from facelit.heads import ArcFaceHead, TripletHead
from harness.reporting import Timing, machine, print_header, print_table, time_in_turns, write_json
from triplet_mining import DIM, MARGIN, make_batch

FACELIT, PEER = "facelit", "pytorch-metric-learning"
SCALE, ANGLE = 64.0, 0.5

Loss = Callable[[Tensor, Tensor], Tensor]


def arcface(identities: int, device: torch.device) -> dict[str, tuple[Loss, nn.Module]]:
    """ArcFace of both, with the same vectors."""
    own = ArcFaceHead(identities, DIM, scale=SCALE, margin=ANGLE, margin_ramp=0).to(device)
    peer = ArcFaceLoss(identities, DIM, margin=math.degrees(ANGLE), scale=SCALE).to(device)
    with torch.no_grad():
        peer.W.copy_(own.weight.T)
    return {FACELIT: (lambda x, y: own(x, y).loss, own), PEER: (peer, peer)}


def triplets(rule: str) -> dict[str, tuple[Loss, nn.Module]]:
    """The triplet loss of both, on squared distances of normalised embeddings."""
    own = TripletHead(MARGIN, "all" if rule == "all" else "semihard")
    distance = LpDistance(normalize_embeddings=True, p=2, power=2)
    peer = TripletMarginLoss(margin=MARGIN, distance=distance)
    miner = TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=distance)

    def mined(embeddings: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = peer(embeddings, labels, miner(embeddings, labels) if rule == "semihard" else None)
        return loss

    return {FACELIT: (lambda x, y: own(x, y).loss, own), PEER: (mined, peer)}


def step(loss: Loss, module: nn.Module, embeddings: Tensor, labels: Tensor) -> float:
    """Loss and gradients; waits for the device."""
    embeddings.grad = None
    module.zero_grad()
    value = loss(embeddings, labels)
    torch.autograd.backward(value)
    return float(value.detach())


def measure(
    losses: dict[str, tuple[Loss, nn.Module]], batch: int, device: torch.device, repeats: int, equal: bool
) -> dict[str, Timing]:
    """Times both; stops if their losses differ."""
    embeddings, labels = make_batch(batch, device)
    calls = {name: functools.partial(step, *pair, embeddings, labels) for name, pair in losses.items()}
    values = {name: call() for name, call in calls.items()}
    if equal and not math.isclose(values[FACELIT], values[PEER], rel_tol=1e-3):
        raise SystemExit(
            f"batch {batch}: facelit returns {values[FACELIT]}, the package {values[PEER]}: not comparable"
        )
    return time_in_turns(calls, dict.fromkeys(calls, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, nargs="+", default=[8_631, 85_742], help="of ArcFace")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=9, help="steps of each")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("a spread needs at least 2 repeats")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    facts = machine(["torch", "pytorch-metric-learning"]) | {"threads": str(arguments.threads), "device": device.type}
    print_header(f"The same loss and gradient, D {DIM}, float32", facts)
    rows, figures = [], []
    for batch in arguments.batches:
        cases = {f"ArcFace, {count:,} identities": (arcface(count, device), True) for count in arguments.identities}
        cases |= {"triplets, all": (triplets("all"), True), "triplets, semihard": (triplets("semihard"), False)}
        for name, (losses, equal) in cases.items():
            found = measure(losses, batch, device, arguments.repeats, equal)
            ratio = found[PEER].median / found[FACELIT].median
            rows.append([name, str(batch), *(found[one].milliseconds() for one in (FACELIT, PEER)), f"{ratio:.2f} x"])
            figures += [{"loss": name, "batch": batch, "of": one} | found[one]._asdict() for one in (FACELIT, PEER)]
    print_table(["loss", "batch", FACELIT, PEER, "time / facelit's"], rows)
    write_json(arguments.json, {"machine": facts, "figures": figures})


if __name__ == "__main__":
    main()
