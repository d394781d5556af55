"""DistributedDataParallel with the settings that suit facelit's networks, and gradient compression for slow networks."""

from typing import Any, Literal, get_args

from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from facelit.errors import FacelitError

Compression = Literal["fp16", "bf16", "powersgd"]
"""The ways to compress gradients."""

_CASTS = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}


class FaceDDP(DDPStrategy):
    """Distributed data parallel training with settings that suit facelit's networks.

    Every parameter takes part in every step, so that DDP need not search for unused ones; and gradients are views of the
    communication buckets, not copies.

    Use it with `--trainer.strategy facelit.speed.FaceDDP`.

    Args:
        static_graph: Whether torch may assume that all steps have the first one's graph, which holds for facelit's networks.
            Not with accumulated batches: torch fails at the first one.
        gradient_as_bucket_view: Whether gradients are views of the buckets; saves a copy of all gradients.
        bucket_cap_mb: Megabytes of gradients to send at once; None for torch's own choice (25). Larger buckets suit slow
            connections with many processes, smaller ones are sent earlier.
        compress: How to compress gradients: "fp16" and "bf16" halve the traffic, at that precision; "powersgd" sends far less,
            a matrix's two factors of rank `powersgd_rank` (Vogels, Karimireddy & Jaggi, NeurIPS 2019), and carries the error
            over to the next step. Checkpoints do not store that error: a resumed run starts with none. None sends gradients
            uncompressed.
        powersgd_rank: The rank of the factors: a higher rank is more precise, but sends more.
        powersgd_start: The number of steps before "powersgd" begins, with gradients sent uncompressed; at least 2.
        process_group_backend: torch.distributed's backend; None for nccl on GPUs and gloo elsewhere.

    Raises:
        FacelitError: An option is outside its range.
    """

    def __init__(
        self,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = True,
        bucket_cap_mb: float | None = None,
        compress: Compression | None = None,
        powersgd_rank: int = 4,
        powersgd_start: int = 1000,
        process_group_backend: str | None = None,
    ) -> None:
        _check_options(bucket_cap_mb, compress, powersgd_rank, powersgd_start)
        self.static_graph = static_graph
        self.compress = compress
        self.powersgd_rank = powersgd_rank
        self.powersgd_start = powersgd_start
        options: dict[str, Any] = {} if bucket_cap_mb is None else {"bucket_cap_mb": bucket_cap_mb}
        super().__init__(
            process_group_backend=process_group_backend,
            find_unused_parameters=False,
            static_graph=static_graph,
            gradient_as_bucket_view=gradient_as_bucket_view,
            **options,
        )

    def setup(self, trainer: Trainer) -> None:
        """Rejects combinations with which torch fails an internal assertion, or trains incorrectly."""
        if self.static_graph and trainer.accumulate_grad_batches > 1:
            raise FacelitError(
                "trainer.strategy: static_graph cannot be combined with trainer.accumulate_grad_batches. Turn one of them off."
            )
        if self.compress == "powersgd" and trainer.precision == "16-mixed":
            raise FacelitError(
                "trainer.strategy.compress powersgd cannot be combined with trainer.precision 16-mixed: it would mix gradients of"
                " different scales over steps. Use bf16-mixed."
            )
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Registers the compression, with gloo too: Lightning's own `ddp_comm_hook` is ignored except on GPUs."""
        super().configure_ddp()
        if self.compress is None:
            return
        parallel: Any = self.model
        if self.compress == "powersgd":
            state = PowerSGDState(None, self.powersgd_rank, start_powerSGD_iter=self.powersgd_start)
            parallel.register_comm_hook(state, powerSGD_hook)
        else:
            hook = _CASTS[self.compress]
            # torch rejects bf16_compress_hook by name without NCCL, though gloo can run it.
            parallel.register_comm_hook(None, lambda state, bucket: hook(state, bucket))


def _check_options(bucket_cap_mb: float | None, compress: str | None, rank: int, start: int) -> None:
    if bucket_cap_mb is not None and not bucket_cap_mb > 0:
        raise FacelitError(f"trainer.strategy: bucket_cap_mb must be more than 0 megabytes, not {bucket_cap_mb}.")
    if compress is not None and compress not in get_args(Compression):
        raise FacelitError(
            f"trainer.strategy: compress must be one of {', '.join(get_args(Compression))}, or null, not {compress}."
        )
    if rank < 1 or start < 2:
        raise FacelitError(
            f"trainer.strategy: powersgd_rank must be at least 1 and powersgd_start at least 2, not {rank} and {start}."
        )
