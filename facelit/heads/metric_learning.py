"""Any loss and miner of pytorch-metric-learning as a head.

[1] Musgrave, Belongie, Lim: PyTorch Metric Learning, arXiv 2008.09164, 2020.
"""

import inspect
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from facelit.distributed import all_gather, all_gather_with_grad, world_size
from facelit.errors import FacelitError
from facelit.heads.base import Head, HeadOutput, check_labels, wants_metrics
from facelit.heads.precision import KeepsFloat32, at_least_float32

_PACKAGE = "pytorch_metric_learning"
_ROOMS = ("losses", "miners", "distances", "reducers", "regularizers")
_NUM_IDENTITIES, _EMBEDDING_DIM = ("num_classes",), ("embedding_size", "descriptors_dim")
"""What the package's classes call the two sizes."""

Arguments = dict[str, bool | int | float | str | list | dict | None]  # type: ignore[type-arg]
"""Without `Any`: for it jsonargparse would create objects of any class that a configuration, or a checkpoint, names."""


class MetricLearningHead(KeepsFloat32, Head):
    """Runs a loss of pytorch-metric-learning [1], with a miner if one is named, on the global batch.

    Needs `pip install "facelit[metric-learning]"`. In distributed training embeddings and labels are gathered first, so
    that loss and gradient are those of one process with the whole batch. Computed in float32 under autocast; the loss's
    own weights stay in float32 when the module is cast to half precision, and follow the network's optimizer. Miners and
    losses that draw at random are seeded from torch's seed when the head was created and the number of batches so far:
    the same on every process, and in a resumed run.

    Metrics: embedding_norm (mean Euclidean norm), genuine_pairs (ordered pairs of images of one identity in the global
    batch; for losses without weights only) and, depending on the miner, mined_triplets, or mined_genuine_pairs and
    mined_impostor_pairs.

    Args:
        loss: name of a class in `pytorch_metric_learning.losses`, such as `MultiSimilarityLoss`, or its import path.
        loss_args: its arguments by name. An argument that is itself an object is written {class_path: ..., init_args:
            {...}}, with a class of the same package: `distance: {class_path: LpDistance, init_args: {p: 1}}`. Required
            numbers of classes and embedding sizes are filled in.
        miner: name of a class in `pytorch_metric_learning.miners`, or its import path; None for the loss's own behaviour
            without one.
        miner_args: its arguments.
        num_identities: the number of identities, for losses with weights for each.
        embedding_dim: the length of an embedding, for losses with weights of that size.

    Attributes:
        loss: the package's loss.
        miner: the package's miner, or None.

    Raises:
        FacelitError: if the package is not installed, has no such class, or the class rejects the arguments. From the
            forward pass: if loss or miner reject the batch, or the loss is more than one number.
        ValueError: from the forward pass, if a label is out of range (on the CPU).
    """

    def __init__(
        self,
        loss: str,
        loss_args: Arguments | None = None,
        miner: str | None = None,
        miner_args: Arguments | None = None,
        num_identities: int | None = None,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        builder = _Builder(num_identities, embedding_dim)
        self.loss = builder.build(loss, loss_args or {}, "losses", "loss")
        if "labels" not in inspect.signature(self.loss.forward).parameters:
            raise FacelitError(f"MetricLearningHead's loss: {type(self.loss).__name__} does not look at identities.")
        if any(type(module).__name__ == "DynamicSoftMarginLoss" for module in self.loss.modules()):
            # Its second step would backpropagate through the graph of the first, and no checkpoint would hold its histogram.
            raise FacelitError(
                "MetricLearningHead's loss: DynamicSoftMarginLoss cannot be used for training: its histogram keeps the"
                " last batch's graph."
            )
        if miner is None and miner_args:
            raise FacelitError("MetricLearningHead has miner_args, but no miner: name one, or omit them.")
        self.miner = None if miner is None else builder.build(miner, miner_args or {}, "miners", "miner")
        self.num_identities = num_identities if builder.depends_on_identities else None
        self._memories: list[Any] = [
            module for module in self.loss.modules() if type(module).__name__ == "CrossBatchMemory"
        ]
        self._needs_pairs = self.num_identities is None and not self._memories
        self._seed = torch.initial_seed() % 2**63
        self._seed_is_shared = False
        self._batches = 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:  # noqa: D102  # Head's
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = all_gather_with_grad(at_least_float32(embeddings))
            if self.num_identities is not None:
                check_labels(labels, self.num_identities)
            labels = all_gather(labels.long())
            with self._same_random_numbers(embeddings.device):
                loss, mined = self._compute(embeddings, labels)
            # Zeros with a graph: where nothing is mined the package's loss may depend on nothing, and
            # DistributedDataParallel waits for the gradient of every parameter.
            loss = loss + 0 * sum(x.sum() for x in (embeddings, *self.loss.parameters()))
        return HeadOutput(loss, self._metrics(embeddings.detach(), labels, mined) if wants_metrics() else {})

    def _compute(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Sequence[Tensor] | None]:
        """The package's loss as a scalar, and the indices that the miner selected."""
        part: nn.Module | None = self.miner
        try:
            mined: Sequence[Tensor] | None = None if self.miner is None else self.miner(embeddings, labels)
            part = self.loss
            loss = self.loss(embeddings, labels, mined)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, AssertionError, IndexError, TypeError, RuntimeError) as error:
            # Most of the package's checks are assertions without a message.
            reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
            mining = f" with {type(self.miner).__name__}" if part is self.loss and self.miner is not None else ""
            raise FacelitError(f"{type(part).__name__} of {_PACKAGE} rejects this batch{mining}: {reason}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise FacelitError(f"{type(self.loss).__name__} must return one number: give it another reducer.")
        return loss.reshape(()), mined

    def _metrics(self, embeddings: Tensor, labels: Tensor, mined: Sequence[Tensor] | None) -> dict[str, Tensor]:
        counts: dict[str, int] = {}
        if mined is not None and len(mined) == 3:
            counts = {"mined_triplets": len(mined[0])}
        elif mined is not None:
            counts = {"mined_genuine_pairs": len(mined[0]), "mined_impostor_pairs": len(mined[2])}
        # full, not tensor: on a GPU it need not wait for the device.
        metrics = {name: embeddings.new_full((), count) for name, count in counts.items()}
        if self._needs_pairs:
            same = labels.unsqueeze(0) == labels.unsqueeze(1)
            metrics["genuine_pairs"] = same.sum().to(embeddings.dtype) - len(labels)
        metrics["embedding_norm"] = embeddings.norm(dim=1).mean()
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Warns of a batch from which a loss of pairs or triplets can learn nothing."""
        if metrics.get("genuine_pairs", 1) == 0:
            return (
                f"No identity has two images in the batch, and {type(self.loss).__name__} compares images: use a"
                " sampler that draws P identities x K images (--data.sampler IdentityBalancedSampler)."
            )
        return None

    @contextmanager
    def _same_random_numbers(self, device: torch.device) -> Iterator[None]:
        """The same on each process and for the same batch of a run, whatever else was drawn; torch's own state is left alone."""
        if world_size() > 1 and not self._seed_is_shared:
            own = torch.tensor([self._seed], device=device)
            self._seed = int(all_gather(own, parts=(1,) * world_size())[0])
            self._seed_is_shared = True
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((self._seed + 0x9E3779B97F4A7C15 * self._batches) % 2**63)
            yield
        self._batches += self.training

    def get_extra_state(self) -> Tensor:
        """What loss and random numbers depend on besides weights and buffers, as one int64 tensor."""
        places = [int(value) for memory in self._memories for value in (memory.queue_idx, memory.has_been_filled)]
        return torch.tensor([self._seed, self._batches, *places])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self._seed, self._batches, *places = state.tolist()
        for number, memory in enumerate(self._memories):
            memory.queue_idx, memory.has_been_filled = places[2 * number], bool(places[2 * number + 1])


class _Builder:
    """Creates objects of the package from names and arguments; nothing outside the package is imported or created.

    A checkpoint says how its head is built: one from a stranger must not make this program import what it names.
    """

    def __init__(self, num_identities: int | None, embedding_dim: int | None) -> None:
        self.depends_on_identities = False
        self._sizes = {
            **dict.fromkeys(_NUM_IDENTITIES, num_identities),
            **dict.fromkeys(_EMBEDDING_DIM, embedding_dim),
        }

    def build(self, name: str, args: Mapping[str, Any], room: str | None, option: str) -> nn.Module:
        """An object of the class, its arguments checked and its sizes filled in."""
        cls = _find_class(name, room, option)
        # The arguments of "loss" are in "loss_args"; options inside those are named in full already.
        option = f"{option}_args" if "." not in option else option
        accepted = _parameters(cls)
        for key in args:
            _check_argument(key, accepted, cls, option)
        made = {key: self._resolve(value, f"{option}.{key}") for key, value in args.items()}
        for key, size in self._sizes.items():
            if key in accepted and (key in made or accepted[key].default is inspect.Parameter.empty):
                made[key] = self._fill_size(key, made.get(key), size, cls, option)
        try:
            return cls(**made)
        except Exception as error:  # the package raises all kinds, bare Exception among them
            reason = str(error).strip().replace("\n", "; ") or traceback.extract_tb(error.__traceback__)[-1].line
            raise FacelitError(f"MetricLearningHead's {option}: {cls.__name__}: {reason}") from error

    def _resolve(self, value: Any, option: str) -> Any:
        """Creates the objects written as {class_path: ..., init_args: ...}, at any depth."""
        if isinstance(value, Mapping) and "class_path" in value:
            if unknown := set(value) - {"class_path", "init_args"}:
                raise FacelitError(
                    f"MetricLearningHead's {option}: next to class_path there is {', '.join(sorted(unknown))}: arguments"
                    " belong in init_args."
                )
            return self.build(str(value["class_path"]), value.get("init_args") or {}, None, option)
        if isinstance(value, Mapping):
            return {key: self._resolve(inner, f"{option}.{key}") for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolve(inner, f"{option}.{number}") for number, inner in enumerate(value)]
        return value

    def _fill_size(self, key: str, typed: Any, size: int | None, cls: type, option: str) -> Any:
        if size is None and typed is None:
            needed = "num_identities" if key in _NUM_IDENTITIES else "embedding_dim"
            raise FacelitError(f"{cls.__name__} has weights for each identity or dimension: give the head {needed}.")
        if typed is not None and size is not None and typed != size:
            raise FacelitError(
                f"MetricLearningHead's {option}: {key} is {typed}, but data and backbone make it {size}: omit it."
            )
        self.depends_on_identities |= key in _NUM_IDENTITIES
        return typed if size is None else size


def _find_class(name: str, room: str | None, option: str) -> type[nn.Module]:
    """The package's class of that name.

    Args:
        name: short, or with its import path.
        room: module of the package that it must be in; None for any of them.
        option: where the name was given, for messages.
    """
    known = _classes(_ROOMS if room is None else (room,))
    path, _, short = name.rpartition(".")
    below = _ROOMS if room is None else (room,)
    if path and not any(f"{path}.".startswith(f"{_PACKAGE}.{each}.") for each in below):
        raise FacelitError(
            f"MetricLearningHead's {option}: {name} is not in {' or '.join(f'{_PACKAGE}.{each}' for each in below)}."
            " For a loss of your own write a head: docs/extending.md."
        )
    if short not in known:
        kind = "class" if room is None else room.removesuffix("es" if room == "losses" else "s")
        raise FacelitError(
            f"MetricLearningHead's {option}: pytorch-metric-learning has no {kind} {short}.{_hint(short, known)}"
        )
    return known[short]


def _classes(rooms: Iterable[str]) -> dict[str, type[nn.Module]]:
    """The package's classes by name, except its base classes."""
    try:
        modules = [import_module(f"{_PACKAGE}.{room}") for room in rooms]
    except ModuleNotFoundError as error:
        raise FacelitError(
            f'MetricLearningHead: the package {error.name} is not installed: pip install "facelit[metric-learning]"'
        ) from None
    found = [item for module in modules for item in vars(module).items() if inspect.isclass(item[1])]
    abstract = ("Base", "GenericPairLoss")
    return {name: cls for name, cls in found if issubclass(cls, nn.Module) and not name.startswith(abstract)}


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """What a constructor accepts: the package passes `**kwargs` on from class to class."""
    accepted: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is nn.Module:
            break
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]  # of a class
        named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        accepted = {each.name: each for each in named} | accepted
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return accepted


def _check_argument(key: str, accepted: Mapping[str, inspect.Parameter], cls: type, option: str) -> None:
    if key in accepted:
        return
    name, dot, _ = key.partition(".")
    if dot and name in accepted:
        raise FacelitError(
            f"MetricLearningHead's {option}: write {name} in one piece: {name} '{{class_path: ..., init_args: {{...}}}}'."
        )
    raise FacelitError(f"MetricLearningHead's {option}: {cls.__name__} takes no {key}.{_hint(key, accepted)}")


def _hint(name: str, known: Iterable[str]) -> str:
    """The closest match, or all names if none is close."""
    by_lower = {each.lower(): each for each in known}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]}?" if close else f" There are: {', '.join(sorted(by_lower.values()))}."
