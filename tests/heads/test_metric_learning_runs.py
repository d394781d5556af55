"""MetricLearningHead in runs of the command line: what one types, what a run writes, how it goes on."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from facelit.cli import main
from tiny_run import make_run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    main(["fit", "--config", str(configuration(folder))])
    return folder


def configuration(folder: Path) -> Path:
    """A loss that remembers, a miner that draws; two epochs of six batches."""
    inner = {
        "loss": {"class_path": "ContrastiveLoss"},
        "miner": {"class_path": "DistanceWeightedMiner"},
        "memory_size": 30,
    }
    options = {"loss": "CrossBatchMemory", "loss_args": inner, "miner": "DistanceWeightedMiner"}
    head = {"class_path": "MetricLearningHead", "init_args": options}
    return make_run(folder, model__head=head, trainer__max_epochs=2)


def final_state(folder: Path) -> dict[str, Tensor]:
    path = max(folder.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_a_stopped_run_resumes_exactly(tmp_path: Path, uninterrupted: Path) -> None:
    config = configuration(tmp_path)
    main(["fit", "--config", str(config), "--trainer.max_steps", "3"])
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    expected, actual = final_state(uninterrupted), final_state(tmp_path)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, msg=name)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options as one types them; the run's configuration holds them; a checkpoint builds the head again by itself."""
    config = make_run(tmp_path, trainer__max_steps=2)
    arguments = ["fit", "--config", str(config), "--model.head", "MetricLearningHead"]
    arguments += ["--model.head.loss", "ProxyAnchorLoss", "--model.head.loss_args.alpha", "16"]
    arguments += ["--model.head.loss_args.reducer", "{class_path: DivisorReducer}"]
    arguments += ["--model.head.miner", "pytorch_metric_learning.miners.MultiSimilarityMiner"]
    arguments += ["--model.head.miner_args.epsilon", "0.2"]
    main(arguments)
    (run,) = tmp_path.glob("runs/tiny/*")
    written = yaml.safe_load((run / "config.yaml").read_text())["model"]["head"]
    assert written["class_path"] == "facelit.heads.MetricLearningHead"
    assert written["init_args"]["loss_args"] == {"alpha": 16, "reducer": {"class_path": "DivisorReducer"}}
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["state_dict"]["head.loss.proxies"].shape == (8, 16)
    assert checkpoint["facelit"]["num_identities"] == 8
    log = (run / "metrics.csv").read_text()
    for name in ("train/loss", "train/mined_genuine_pairs", "train/embedding_norm"):
        assert name in log
    capsys.readouterr()
    main(["validate", "--config", str(config), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    assert "accuracy" in max(tmp_path.glob("runs/tiny/*/metrics.csv")).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.head.loss", "ArcfaceLos"], "has no loss ArcfaceLos. Did you mean ArcFaceLoss?"),
        (
            ["--model.head.loss", "NCALoss", "--model.head.loss_args.softmaxscale", "2"],
            "NCALoss takes no softmaxscale. Did you mean softmax_scale?",
        ),
        (["--model.head.los", "NCALoss"], "unknown option los. Did you mean loss?"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    config = make_run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), "--model.head", "MetricLearningHead", *arguments])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len([line for line in shown.splitlines() if line.startswith("facelit: error:")]) == 1


@pytest.mark.parametrize("how", ["direct", "in a list"])
def test_classes_of_strangers_are_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Neither by the head nor by the parser before it."""
    (tmp_path / "strange.py").write_text("raise SystemExit('imported')\nclass Distance: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = "{class_path: strange.Distance, init_args: {}}"
    arguments = ["--model.head.loss", "MultipleLosses", "--model.head.loss_args", f"{{losses: [{spec}]}}"]
    if how == "direct":
        arguments = ["--model.head.loss", "NCALoss", "--model.head.loss_args.distance", spec]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(make_run(tmp_path)), "--model.head", "MetricLearningHead", *arguments])
    assert ended.value.code == 2
    assert "strange.Distance is not in pytorch_metric_learning" in capsys.readouterr().err
    assert "strange" not in sys.modules
