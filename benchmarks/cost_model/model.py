"""Calculates the cost of a training step on 1 to 64 GPUs: the arithmetic behind docs/scaling.md.

Pure functions of a machine, a job and a number of GPUs; no torch. Units are bytes, seconds, FLOP (a multiply-add is two) and their
rates. The model ignores kernel launches, Python, stragglers, validation, and the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOAT32, BFLOAT16, INT64 = 4, 2, 8

SGD_TRAFFIC = 5 * FLOAT32
"""Bytes that an optimizer step moves per parameter: it reads weight, gradient and momentum, and writes two of them."""
BUCKET_TRAFFIC = 2 * FLOAT32
"""Further bytes for its gradient: into DistributedDataParallel's bucket, where it stays."""
FRESH_GRADIENTS = 1
"""Tensors of the head's size that each step allocates: the gradient."""
SAMPLED_COPIES = 2
"""The same if a step samples identities: their weights are copied, and the copy has a gradient."""
SOFTMAX_PASSES, AGAIN_PASSES = 11, 5
"""Reads and writes of a logit, and the further ones if it is computed twice: counted in `facelit.heads.identity_logits`."""
TRIPLET_PASSES, TRIPLET_TENSORS = 40, 12
"""The same for an entry of the distance matrix (sorting counts for twenty), and how many matrices of its size live at once."""
PLAIN_LOGITS, KEPT_LOGITS = 3, 2
"""Tensors of the logits' size alive at once: logits, log-softmax and gradient; in facelit's heads softmax and gradient."""
MAX_LOGITS = 2**25
"""The most logits that facelit's heads hold at once; more are computed in groups of identities, and again in the backward."""
CHECKPOINTED = 1 / 3
"""Share of the activations that gradient checkpointing keeps."""
BUCKET = 25 * 2**20
"""Bytes of DistributedDataParallel's gradient buckets: no backward is left to hide the last one's all-reduce."""

Head = Literal["softmax", "center", "triplet"]


@dataclass(frozen=True)
class Link:
    """A connection between GPUs: bytes/s in one direction, and seconds until a message's first byte arrives."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machine:
    """One GPU, its connections, and the CPU cores that feed it.

    Attributes:
        name: The machine's name in tables.
        matmul: FLOP/s of large matrix products in the training precision.
        efficiency: Share of that rate which the backbone's forward and backward reach.
        head_matmul: FLOP/s of the head's float32 products.
        memory: Bytes of a GPU; `reserved` of them are taken by the context, workspaces and fragmentation.
        reserved: See `memory`.
        memory_bandwidth: Bytes/s.
        first_touch: Bytes/s of newly allocated memory: page by page on a CPU, infinite on a GPU, where torch keeps it.
        gpus_per_node: The number of GPUs in a node.
        intra: The connection between a node's GPUs, for each GPU.
        inter: The connection out of a node, with all of its network cards together.
        overlap: Share of the backward that an all-reduce can hide behind.
        crops_per_worker: Crops/s that one loader process reads and decodes.
        workers: Loader processes for each GPU.
        max_workers: The most loader processes that the CPU cores allow.
        decodes: Whether the GPU decodes the JPEGs itself, which leaves the loader almost nothing to do.
    """

    name: str
    matmul: float
    efficiency: float
    head_matmul: float
    memory: float
    reserved: float
    memory_bandwidth: float
    first_touch: float
    gpus_per_node: int
    intra: Link
    inter: Link
    overlap: float
    crops_per_worker: float
    workers: int
    max_workers: int
    decodes: bool = False


@dataclass(frozen=True)
class Backbone:
    """A backbone's cost for one image.

    Attributes:
        name: The network's name in tables.
        flops: FLOP of a forward pass.
        params: The number of parameters.
        saved: Bytes of the activations that the backward needs, in bfloat16 and in float32.
        largest: Elements of the largest activation.
    """

    name: str
    flops: float
    params: int
    saved: tuple[float, float]
    largest: int


@dataclass(frozen=True)
class Job:
    """What to train, and with which options.

    Attributes:
        backbone: The network.
        head: Softmax, softmax + center loss, or triplets over the global batch.
        identities: Identities in the training set; a triplet head has no parameters for them.
        embedding_dim: Length of an embedding.
        batch: Images per GPU and step.
        bf16: Whether the backbone runs in bfloat16 (weights, gradients and momentum are float32 regardless).
        chunked: Whether at most MAX_LOGITS logits are held at once, as in facelit's heads.
        sharded: Whether each GPU holds only its share of the identities (`--model.head.sharded true`).
        sample_rate: Share of the other identities that a step compares with (`--model.head.sample_rate`).
        checkpointing: Whether the backbone recomputes its activations in the backward.
        compressed: Whether gradients travel in 16 bits.
    """

    backbone: Backbone
    head: Head
    identities: int
    embedding_dim: int = 512
    batch: int = 256
    bf16: bool = True
    chunked: bool = True
    sharded: bool = False
    sample_rate: float = 1.0
    checkpointing: bool = False
    compressed: bool = False


@dataclass(frozen=True)
class Step:
    """Seconds of one training step.

    Attributes:
        backbone: Forward and backward of the network.
        head: Forward and backward of the loss.
        optimizer: The update of all parameters, and the memory traffic of their gradients.
        gather: Collectives that the loss waits for.
        all_reduce: The gradients' whole all-reduce.
        exposed: The part of it not hidden behind the backward.
        loader: Making the next batch, concurrently with all of these.
    """

    backbone: float
    head: float
    optimizer: float
    gather: float
    all_reduce: float
    exposed: float
    loader: float

    @property
    def gpu(self) -> float:
        """The sum of a GPU's consecutive tasks."""
        return self.backbone + self.head + self.optimizer + self.gather + self.exposed

    @property
    def total(self) -> float:
        """The time per step: as the loader works ahead, the slower of the two counts."""
        return max(self.gpu, self.loader)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        backbone: Weights, gradients, momentum, and the bfloat16 copies of the weights.
        head: Weights, gradients and momentum of the identities.
        centers: Centers of the identities, which have neither gradients nor momentum.
        buckets: A second copy of the head's gradient, in DistributedDataParallel's bucket.
        activations: Activations that the network's backward needs.
        logits: The loss's logits or distances for the batch.
        reserved: The machine's own share.
    """

    backbone: float
    head: float
    centers: float
    buckets: float
    activations: float
    logits: float
    reserved: float

    @property
    def total(self) -> float:
        """All together."""
        parts = (self.backbone, self.head, self.centers, self.buckets, self.activations, self.logits, self.reserved)
        return sum(parts)


def link(machine: Machine, gpus: int) -> Link:
    """The connection of a ring over `gpus` GPUs: beyond one node its slowest section counts."""
    if gpus <= machine.gpus_per_node:
        return machine.intra
    slowest = min(machine.intra.bandwidth, machine.inter.bandwidth)
    return Link(slowest, max(machine.intra.latency, machine.inter.latency))


def all_reduce_seconds(size: float, gpus: int, ring: Link) -> float:
    """Ring all-reduce of `size` bytes: 2 (n - 1) messages of size / n (Patarasuk & Yuan, JPDC 2009)."""
    return 2 * (gpus - 1) * (size / gpus / ring.bandwidth + ring.latency)


def all_gather_seconds(size: float, gpus: int, ring: Link) -> float:
    """Ring all-gather of `size` bytes from each GPU; a reduce-scatter of gpus x size bytes takes equally long."""
    return (gpus - 1) * (size / ring.bandwidth + ring.latency)


def head_rows(job: Job, gpus: int) -> float:
    """The number of identities that one GPU holds weights for."""
    if job.head == "triplet":
        return 0
    return job.identities / gpus if job.sharded else job.identities


def logit_shape(job: Job, gpus: int) -> tuple[float, float]:
    """Images and identities that one GPU compares: its own images with all identities, or all images with its share."""
    images = job.batch * gpus if job.sharded else job.batch
    return images, head_rows(job, gpus) * job.sample_rate


def in_groups(job: Job, gpus: int) -> bool:
    """Whether there are more logits than are held at once."""
    images, identities = logit_shape(job, gpus)
    return job.chunked and images * identities > MAX_LOGITS


def reduced_params(job: Job, gpus: int) -> float:
    """Parameters whose gradients DistributedDataParallel sums; shards are excluded."""
    return job.backbone.params + (0 if job.sharded else head_rows(job, gpus) * job.embedding_dim)


def step(job: Job, machine: Machine, gpus: int) -> Step:
    """Seconds of one training step on `gpus` GPUs."""
    ring = link(machine, gpus)
    passes = 4 if job.checkpointing else 3  # forward, a backward of twice that, and another forward if recomputed
    forward = job.backbone.flops * job.batch / (machine.matmul * machine.efficiency)
    size = reduced_params(job, gpus) * (BFLOAT16 if job.compressed else FLOAT32)
    all_reduce = all_reduce_seconds(size, gpus, ring)
    last = all_reduce_seconds(min(size, BUCKET), gpus, ring)
    hidden = machine.overlap * (passes - 1) * forward
    crops = machine.crops_per_worker * machine.workers
    return Step(
        backbone=passes * forward,
        head=_head_seconds(job, machine, gpus),
        optimizer=_parameter_seconds(job, machine, gpus),
        gather=_gather_seconds(job, gpus, ring),
        all_reduce=all_reduce,
        exposed=max(all_reduce - hidden, last),
        loader=0 if machine.decodes else job.batch / crops,
    )


def _parameter_seconds(job: Job, machine: Machine, gpus: int) -> float:
    """Seconds of gradient and optimizer traffic outside of the products."""
    head = head_rows(job, gpus) * job.embedding_dim
    buckets = BUCKET_TRAFFIC * reduced_params(job, gpus) if gpus > 1 else 0
    traffic = SGD_TRAFFIC * (job.backbone.params + head) + buckets
    return traffic / machine.memory_bandwidth + FRESH_GRADIENTS * FLOAT32 * head / machine.first_touch


def _head_seconds(job: Job, machine: Machine, gpus: int) -> float:
    if job.head == "triplet":
        entries = (job.batch * gpus) ** 2
        flops, traffic = 6.0 * entries * job.embedding_dim, float(TRIPLET_PASSES * FLOAT32 * entries)
    else:
        images, identities = logit_shape(job, gpus)
        again = in_groups(job, gpus)
        # A product forward, two backward, and the first again if logits are not kept.
        flops = (8 if again else 6) * images * identities * job.embedding_dim
        traffic = (SOFTMAX_PASSES + AGAIN_PASSES * again) * FLOAT32 * images * identities
    return flops / machine.head_matmul + traffic / machine.memory_bandwidth


def _gather_seconds(job: Job, gpus: int, ring: Link) -> float:
    """Seconds to gather embeddings and labels, if the loss or the centers need the global batch's."""
    size = job.batch * job.embedding_dim * FLOAT32
    gathered = all_gather_seconds(size, gpus, ring) + all_gather_seconds(job.batch * INT64, gpus, ring)
    if not job.sharded:
        return 0.0 if job.head == "softmax" else gathered
    # Their gradient is summed over all GPUs, and four numbers per image are exchanged, which suffices for the centers.
    sums = all_gather_seconds(4 * job.batch * gpus * FLOAT32, gpus, ring)
    return gathered + all_reduce_seconds(size * gpus, gpus, ring) + sums


def memory(job: Job, machine: Machine, gpus: int) -> Memory:
    """Bytes on each of `gpus` GPUs, at the end of the backward."""
    weights = 3 * FLOAT32 * job.backbone.params + (BFLOAT16 * job.backbone.params if job.bf16 else 0)
    rows = head_rows(job, gpus) * job.embedding_dim
    saved = job.backbone.saved[0 if job.bf16 else 1] * (CHECKPOINTED if job.checkpointing else 1)
    working = 2 * job.backbone.largest * (BFLOAT16 if job.bf16 else FLOAT32)  # a layer's gradient in and out
    return Memory(
        backbone=weights,
        head=FLOAT32 * rows * (3 + (SAMPLED_COPIES * job.sample_rate if job.sample_rate < 1 else 0)),
        centers=FLOAT32 * rows if job.head == "center" else 0,
        buckets=FLOAT32 * rows if gpus > 1 and not job.sharded else 0,
        activations=job.batch * (saved + working),
        logits=_logit_bytes(job, gpus),
        reserved=machine.reserved,
    )


def _logit_bytes(job: Job, gpus: int) -> float:
    if job.head == "triplet":
        return TRIPLET_TENSORS * FLOAT32 * (job.batch * gpus) ** 2
    images, identities = logit_shape(job, gpus)
    if not job.chunked:
        return PLAIN_LOGITS * FLOAT32 * images * identities
    if not in_groups(job, gpus):
        return FLOAT32 * identities * KEPT_LOGITS * images
    return float(FLOAT32 * MAX_LOGITS)  # a group's


def images_per_second(job: Job, machine: Machine, gpus: int) -> float:
    """Images/s of all GPUs together."""
    return job.batch * gpus / step(job, machine, gpus).total
