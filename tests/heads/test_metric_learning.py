"""MetricLearningHead against pytorch-metric-learning called directly."""

import importlib.util
import inspect
import re
import sys
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facelit.distributed import global_batch, part_sizes
from facelit.errors import FacelitError
from facelit.heads import MetricLearningHead
from facelit.heads.base import metrics_wanted
from tiny_run import ROOT
from two_processes import run_on_two_processes

IDENTITIES, DIM = 5, 6
LABELS = [0, 0, 1, 1, 1, 2, 2, 3, 3, 0, 4, 2]  # identity 4 has one image


class Case(NamedTuple):
    head: dict[str, Any]
    loss: nn.Module
    miner: nn.Module | None = None


def cases() -> dict[str, Case]:
    """What the head is told, and the same written in Python as the package's manual does."""
    size = {"num_classes": IDENTITIES, "embedding_size": DIM}
    l1 = {"class_path": "LpDistance", "init_args": {"p": 1, "normalize_embeddings": False}}
    nested = {
        "distance": {"class_path": "pytorch_metric_learning.distances.CosineSimilarity"},
        "reducer": {"class_path": "ThresholdReducer", "init_args": {"low": 0.1}},
        "embedding_regularizer": {"class_path": "LpRegularizer"},
    }
    in_python = {
        "distance": distances.CosineSimilarity(),
        "reducer": reducers.ThresholdReducer(low=0.1),
        "embedding_regularizer": regularizers.LpRegularizer(),
    }
    several = [{"class_path": "ContrastiveLoss"}, {"class_path": "CosFaceLoss", "init_args": {"scale": 8}}]
    return {
        "multi similarity": Case(
            {
                "loss": "MultiSimilarityLoss",
                "loss_args": {"alpha": 3},
                "miner": "MultiSimilarityMiner",
                "miner_args": {"epsilon": 0.3},
            },
            losses.MultiSimilarityLoss(alpha=3),
            miners.MultiSimilarityMiner(epsilon=0.3),
        ),
        "triplet": Case(
            {"loss": "pytorch_metric_learning.losses.TripletMarginLoss", "miner": "BatchHardMiner"},
            losses.TripletMarginLoss(),
            miners.BatchHardMiner(),
        ),
        "distance": Case(
            {"loss": "ContrastiveLoss", "loss_args": {"neg_margin": 5, "distance": l1}},
            losses.ContrastiveLoss(neg_margin=5, distance=distances.LpDistance(p=1, normalize_embeddings=False)),
        ),
        "nested": Case({"loss": "NTXentLoss", "loss_args": nested}, losses.NTXentLoss(**in_python)),
        "arcface": Case({"loss": "ArcFaceLoss"}, losses.ArcFaceLoss(**size)),
        "cosface": Case({"loss": "CosFaceLoss", "loss_args": {"margin": 0.2}}, losses.CosFaceLoss(margin=0.2, **size)),
        "proxies": Case({"loss": "ProxyAnchorLoss"}, losses.ProxyAnchorLoss(**size)),
        "soft triple": Case(
            {"loss": "SoftTripleLoss", "loss_args": {"centers_per_class": 2}},
            losses.SoftTripleLoss(centers_per_class=2, **size),
        ),
        "p2s": Case({"loss": "P2SGradLoss"}, losses.P2SGradLoss(DIM, IDENTITIES)),
        "several": Case(
            {"loss": "MultipleLosses", "loss_args": {"losses": several, "weights": [0.5, 2.0]}},
            losses.MultipleLosses([losses.ContrastiveLoss(), losses.CosFaceLoss(scale=8, **size)], weights=[0.5, 2.0]),
        ),
    }


def make_head(**options: Any) -> MetricLearningHead:
    return MetricLearningHead(**options, num_identities=IDENTITIES, embedding_dim=DIM)


def make_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(LABELS)
    means = torch.randn(IDENTITIES, DIM, generator=generator)
    return means[labels] + 0.7 * torch.randn(len(labels), DIM, generator=generator), labels


@pytest.mark.parametrize("name", cases())
def test_loss_and_gradients_are_the_packages(name: str) -> None:
    case, (x, labels) = cases()[name], make_batch()
    head = make_head(**case.head)
    case.loss.load_state_dict(head.loss.state_dict())
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, metrics = head(mine, labels)
    loss.backward()
    mined = case.miner(theirs, labels) if case.miner else None
    expected = case.loss(theirs, labels, mined)
    expected.backward()
    assert expected > 0.01
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-6)
    for parameter, other in zip(head.loss.parameters(), case.loss.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-7, rtol=1e-6)
    sized = any(parameter.numel() for parameter in case.loss.parameters())
    assert head.num_identities == (IDENTITIES if sized else None)
    assert metrics["embedding_norm"].item() == pytest.approx(x.norm(dim=1).mean().item())
    assert not any(value.requires_grad for value in metrics.values())


def test_what_was_mined_is_counted() -> None:
    x, labels = make_batch()
    triplets = len(miners.BatchHardMiner()(x, labels)[0])
    genuine, _, impostor, _ = miners.MultiSimilarityMiner(0.3)(x, labels)
    assert make_head(**cases()["triplet"].head)(x, labels).metrics["mined_triplets"] == triplets > 0
    metrics = make_head(**cases()["multi similarity"].head)(x, labels).metrics
    assert metrics["mined_genuine_pairs"] == len(genuine) > 0
    assert metrics["mined_impostor_pairs"] == len(impostor) > 0
    assert metrics["genuine_pairs"] == sum(a == b for a in LABELS for b in LABELS) - len(LABELS)


@pytest.mark.parametrize(("loss", "args"), [("TripletMarginLoss", {}), ("MarginLoss", {"learn_beta": True})])
@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3]])
def test_no_valid_triplet(loss: str, args: dict[str, Any], labels: list[int]) -> None:
    """Zero with a gradient, of every parameter: else DistributedDataParallel waits for ever."""
    head = make_head(loss=loss, loss_args=args, miner="TripletMarginMiner")
    x = torch.randn(4, DIM, requires_grad=True)
    value, metrics = head(x, torch.tensor(labels))
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros(4, DIM))
    assert all(torch.equal(each.grad, torch.zeros_like(each)) for each in head.parameters())
    assert metrics["mined_triplets"] == 0
    warning = head.diagnose({name: figure.item() for name, figure in metrics.items()})
    assert (warning is None) == (labels == [3, 3, 3, 3])
    assert warning is None or "P identities x K images" in warning


def test_an_identity_loss_needs_no_pairs() -> None:
    head = make_head(loss="ArcFaceLoss")
    metrics = head(torch.randn(4, DIM), torch.tensor([0, 1, 2, 3])).metrics
    assert head.diagnose({name: figure.item() for name, figure in metrics.items()}) is None


def test_a_broken_network_shows() -> None:
    x, labels = make_batch()
    x[0, 0] = torch.nan
    assert make_head(loss="TripletMarginLoss")(x, labels).loss.isnan()


@pytest.mark.parametrize("name", ["multi similarity", "arcface", "proxies", "soft triple"])
def test_float32_under_autocast(name: str) -> None:
    x, labels = make_batch()
    head = make_head(**cases()[name].head)
    expected = head(x, labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x, labels).loss, expected)
        assert head(x.bfloat16(), labels).loss.dtype == torch.float32


def test_weights_stay_in_float32() -> None:
    head = make_head(loss="ArcFaceLoss")
    before = [parameter.clone() for parameter in head.parameters()]
    head.bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), before, strict=True))
    assert make_head(loss="ArcFaceLoss").double().loss.W.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("name", ["multi similarity", "arcface", "proxies"])
def test_labels_of_any_integer_type(name: str, dtype: torch.dtype) -> None:
    x, labels = make_batch()
    head = make_head(**cases()[name].head)
    assert torch.equal(head(x, labels.to(dtype)).loss, head(x, labels).loss)


def test_labels_out_of_range() -> None:
    with pytest.raises(ValueError, match="label 5 is out of range"):
        make_head(loss="ArcFaceLoss")(torch.randn(2, DIM), torch.tensor([0, 5]))


RANDOM: dict[str, Any] = {"loss": "TripletMarginLoss", "miner": "DistanceWeightedMiner"}


def test_random_numbers_are_of_the_batch_alone() -> None:
    """They neither follow torch's nor disturb them, differ from batch to batch, and repeat with the seed."""
    x, labels = make_batch()
    runs = []
    for disturbance in (0, 3):
        torch.manual_seed(0)
        head = make_head(**RANDOM)
        torch.rand(disturbance)
        before = torch.get_rng_state()
        runs.append([head(x, labels).loss.item() for _ in range(4)])
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4
    torch.manual_seed(1)
    assert make_head(**RANDOM)(x, labels).loss.item() not in runs[0]


def memory(size: int = 20) -> dict[str, Any]:
    inner = {"class_path": "ContrastiveLoss"}
    miner = {"class_path": "DistanceWeightedMiner"}
    return {"loss": "CrossBatchMemory", "loss_args": {"loss": inner, "miner": miner, "memory_size": size}}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_resumed_head_goes_on(steps: int) -> None:
    """With the memory of earlier batches, whether it was full or not, and the random numbers."""
    torch.manual_seed(0)
    whole = make_head(**memory())
    for step in range(steps):
        whole(*make_batch(step))
    torch.manual_seed(1)
    resumed = make_head(**memory())
    state = whole.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())  # loads safely, and its shapes can be compared
    resumed.load_state_dict({name: value.clone() for name, value in state.items()})
    for step in range(steps, steps + 3):
        assert torch.equal(resumed(*make_batch(step)).loss, whole(*make_batch(step)).loss)


def test_memory_equals_the_packages() -> None:
    head = make_head(loss="CrossBatchMemory", loss_args={"loss": {"class_path": "ContrastiveLoss"}, "memory_size": 20})
    direct = losses.CrossBatchMemory(losses.ContrastiveLoss(), DIM, 20)
    for step in range(3):
        x, labels = make_batch(step)
        torch.testing.assert_close(head(x, labels).loss, direct(x, labels), atol=0, rtol=1e-6)
    assert head.num_identities is None


def test_a_memory_smaller_than_the_batch() -> None:
    with pytest.raises(FacelitError, match=r"CrossBatchMemory .* rejects this batch: .*embedding_memory"):
        make_head(**memory(size=8))(*make_batch())


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown loss": (
        {"loss": "MultiSimilartyLoss"},
        r"no loss MultiSimilartyLoss\. Did you mean MultiSimilarityLoss\?",
    ),
    "nothing close": ({"loss": "Focal"}, r"no loss Focal\. There are: AngularLoss, ArcFaceLoss"),
    "unknown miner": (
        {"loss": "NCALoss", "miner": "multisimilarityminer"},
        r"no miner multisimilarityminer\. Did you mean MultiSimilarityMiner\?",
    ),
    "a miner as loss": (
        {"loss": "pytorch_metric_learning.miners.HDCMiner"},
        r"miners\.HDCMiner is not in pytorch_metric_learning\.losses",
    ),
    "foreign": ({"loss": "torch.nn.CrossEntropyLoss"}, r"torch\.nn\.CrossEntropyLoss is not in .*docs/extending\.md"),
    "foreign inside": (
        {"loss": "NCALoss", "loss_args": {"distance": {"class_path": "os.system", "init_args": {"command": "true"}}}},
        r"loss_args\.distance: os\.system is not in",
    ),
    "roundabout": (
        {"loss": "pytorch_metric_learning.losses.base_metric_loss_function.inspect.sys"},
        r"has no loss sys\.",
    ),
    "wrong argument": (
        {"loss": "MultiSimilarityLoss", "loss_args": {"alhpa": 2}},
        r"loss_args: MultiSimilarityLoss takes no alhpa\. Did you mean alpha\?",
    ),
    "wrong argument inside": (
        {"loss": "NCALoss", "loss_args": {"distance": {"class_path": "LpDistance", "init_args": {"powr": 2}}}},
        r"loss_args\.distance: LpDistance takes no powr\. Did you mean power\?",
    ),
    "wrong argument of the miner": (
        {"loss": "NCALoss", "miner": "HDCMiner", "miner_args": {"percentage": 0.1}},
        r"miner_args: HDCMiner takes no percentage\. Did you mean filter_percentage\?",
    ),
    "dotted": (
        {"loss": "NCALoss", "loss_args": {"distance.class_path": "LpDistance"}},
        r"write distance in one piece: distance '\{class_path",
    ),
    "no init_args": (
        {"loss": "NCALoss", "loss_args": {"distance": {"class_path": "LpDistance", "p": 1}}},
        r"loss_args\.distance: next to class_path there is p: arguments belong in init_args",
    ),
    "arguments without miner": ({"loss": "NCALoss", "miner_args": {"epsilon": 1}}, "miner_args, but no miner"),
    "wrong value": (
        {"loss": "PNPLoss", "loss_args": {"variant": "X"}},
        r"loss_args: PNPLoss: variant=X but must be one of",
    ),
    "wordless assertion": (
        {"loss": "SoftTripleLoss", "loss_args": {"distance": {"class_path": "LpDistance"}}},
        r"loss_args: SoftTripleLoss: assert self\.distance\.is_inverted",
    ),
    "missing": ({"loss": "RankedListLoss", "loss_args": {"margin": 1}}, r"RankedListLoss.* missing .* 'Tn'"),
    "unsupported": (
        {"loss": "CrossBatchMemory", "loss_args": {"loss": {"class_path": "ArcFaceLoss"}}},
        "not supported for ArcFaceLoss",
    ),
    "no labels": (
        {"loss": "SelfSupervisedLoss", "loss_args": {"loss": {"class_path": "NTXentLoss"}}},
        "SelfSupervisedLoss does not look at identities",
    ),
    "keeps its graph": ({"loss": "DynamicSoftMarginLoss"}, "DynamicSoftMarginLoss cannot be used for training"),
    "abstract": ({"loss": "GenericPairLoss", "loss_args": {"mat_based_loss": True}}, "has no loss GenericPairLoss"),
    "other size": (
        {"loss": "ArcFaceLoss", "loss_args": {"num_classes": 7}},
        "num_classes is 7, but data and backbone make it 5: omit it",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line(name: str) -> None:
    options, message = MISTAKES[name]
    with pytest.raises(FacelitError, match=message) as raised:
        make_head(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("missing", "given"), [("num_identities", "embedding_dim"), ("embedding_dim", "num_identities")]
)
def test_sizes_that_nobody_gave(missing: str, given: str) -> None:
    with pytest.raises(FacelitError, match=f"ArcFaceLoss .* give the head {missing}"):
        MetricLearningHead("ArcFaceLoss", **{given: 5})


def test_a_miner_that_the_loss_does_not_take() -> None:
    head = make_head(loss="P2SGradLoss", miner="MultiSimilarityMiner")
    with pytest.raises(FacelitError, match=r"P2SGradLoss .* with MultiSimilarityMiner: indices_tuple is not supported"):
        head(*make_batch())


def test_what_goes_wrong_inside_the_package_is_told() -> None:
    """HistogramLoss looks for a bin beyond its last one where two embeddings are equal."""
    embeddings = torch.eye(4, 3)
    embeddings[1] = embeddings[0]
    with pytest.raises(FacelitError, match="HistogramLoss of pytorch_metric_learning rejects this batch: index"):
        MetricLearningHead("HistogramLoss")(embeddings, torch.tensor([0, 0, 1, 1]))


def test_a_reducer_that_does_not_reduce() -> None:
    head = make_head(loss="TripletMarginLoss", loss_args={"reducer": {"class_path": "DoNothingReducer"}})
    with pytest.raises(FacelitError, match="give it another reducer"):
        head(*make_batch())


def test_the_manuals_configuration() -> None:
    manual = (ROOT / "docs" / "metric-learning.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", manual, flags=re.DOTALL)
    x, labels = make_batch()
    loss = make_head(**yaml.safe_load(block)["model"]["head"]["init_args"])(x, labels).loss
    direct = losses.MultiSimilarityLoss(alpha=2, embedding_regularizer=regularizers.LpRegularizer(p=2))
    torch.testing.assert_close(loss, direct(x, labels, miners.MultiSimilarityMiner(0.2)(x, labels)), atol=0, rtol=1e-6)


@pytest.mark.parametrize(("loss", "args"), [("VICRegLoss", {}), ("ManifoldLoss", {"l": DIM, "K": 2})])
def test_losses_that_do_not_look_at_identities(loss: str, args: dict[str, Any]) -> None:
    with pytest.raises(FacelitError, match=f"{loss} .* rejects this batch: labels are .* not supported"):
        make_head(loss=loss, loss_args=args)(*make_batch())


def test_metrics_that_nobody_reads_are_not_computed() -> None:
    with metrics_wanted(False):
        assert make_head(**cases()["triplet"].head)(*make_batch()).metrics == {}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorch_metric_learning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(FacelitError, match=r'pip install "facelit\[metric-learning\]"'):
        make_head(loss="NCALoss")


def test_importing_the_head_does_not_import_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run imports `facelit.heads`."""
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    spec = importlib.util.spec_from_file_location("copy_of_the_module", inspect.getfile(MetricLearningHead))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


ON_TWO: dict[str, dict[str, Any]] = {
    **{name: case.head for name, case in cases().items()},
    "random miner": RANDOM,
    "random histogram": {"loss": "ContrastiveLoss", "miner": "UniformHistogramMiner"},
    "memory": memory(),
    "unused weights": {"loss": "MarginLoss", "loss_args": {"learn_beta": True}, "miner": "TripletMarginMiner"},
}


class Model(nn.Module):
    """A backbone of one layer, and a head; float64."""

    def __init__(self, options: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(DIM, DIM)
        self.head = make_head(**options)
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(self.backbone(images), labels)


def train(options: dict[str, Any], rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Two steps of gradient descent, the first on an odd batch; what came out."""
    model = Model(options, seed=rank)  # the processes were not seeded alike: rank 0's seed and weights count
    wrapped = model if world_size == 1 else DistributedDataParallel(model)
    figures = []
    for step, total in enumerate((11, 12)):
        x, labels = make_batch(step)
        parts = part_sizes(total, world_size)
        own = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
        with global_batch(total):
            loss, metrics = wrapped(x.double()[own], labels[own])
        loss.backward()
        figures.append({"loss": loss.item(), **{name: value.item() for name, value in metrics.items()}})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    state = {name: value for name, value in model.state_dict().items()}
    return {"figures": figures, "state": state, "random": torch.rand(3)}


def train_on_each() -> list[dict[str, Any]]:
    rank = torch.distributed.get_rank()
    return [train(options, rank, 2) for options in ON_TWO.values()]


@pytest.fixture(scope="module")
def on_two() -> list[list[dict[str, Any]]]:
    return run_on_two_processes(train_on_each)


@pytest.mark.parametrize("name", ON_TWO)
def test_two_processes_equal_one(on_two: list[list[dict[str, Any]]], name: str) -> None:
    one = train(ON_TWO[name])
    for results in on_two:
        result = results[list(ON_TWO).index(name)]
        for figures, expected in zip(result["figures"], one["figures"], strict=True):
            assert figures == pytest.approx(expected, abs=1e-9)
        for key, value in one["state"].items():
            torch.testing.assert_close(result["state"][key], value, atol=1e-9, rtol=1e-9, msg=key)
