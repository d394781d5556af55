"""The model card: nothing made up, figures as the run logged them, and what is not recorded said to be so."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import yaml
from scipy.stats import binomtest

from facelit import FacelitError
from facelit.backbones import VGG16
from facelit.cli import main
from facelit.data import SyntheticFaces
from facelit.export.card_facts import gather
from facelit.export.card_text import wilson_interval
from facelit.tools.card import card
from tiny_run import IMAGES_EACH, NUM_IDENTITIES, TINY_VGG, make_run

HEADINGS = [
    "# Face embeddings by VGG16",
    "## Model",
    "## Data",
    "## Results",
    "## Thresholds",
    "## How to use",
    "## Intended use and limits",
    "## Configuration",
]


def headings(text: str) -> list[str]:
    """Of the card's own text: what stands in a code block is not a heading."""
    return re.findall(r"^#+ .*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def table(text: str, heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without the head and the rule."""
    below = text.split(f"## {heading}\n")[1]
    lines = re.search(r"(^\|.*\n)+", below, re.MULTILINE).group(0).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs; its crops lie two folders up."""
    folder = tmp_path_factory.mktemp("tiny")
    main(["fit", "--config", str(make_run(folder, model__backbone=TINY_VGG, trainer__max_epochs=2))])
    return folder / "runs" / "tiny" / "version_0"


def logged(run: Path, step: int) -> dict[str, float]:
    """What the CSV logger wrote of the validation after `step` optimizer steps."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("tiny/accuracy")]
    (row,) = [row for row in rows if int(row["step"]) == step - 1]  # Lightning counts a step's row from 0
    return {key.removeprefix("tiny/"): float(value) for key, value in row.items() if key.startswith("tiny/") and value}


def best_of(run: Path) -> Path:
    (best,) = (run / "checkpoints").glob("epoch*.ckpt")
    return best


def test_the_card_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = best_of(finished)
    assert card(str(best), overwrite=True) == 0
    assert "card.md" in capsys.readouterr().out
    text = (best.parent / "card.md").read_text()
    assert headings(text) == HEADINGS
    model = dict(table(text, "Model"))
    network = VGG16(width=0.01, embedding_dim=16, batch_norm=True)
    assert model["parameters"] == f"{sum(parameter.numel() for parameter in network.parameters()):,}"
    assert "embedding of 16 numbers" in model["output"]
    assert "width: 0.01" in model["backbone"]
    assert model["loss"].startswith("`CenterLossHead`")
    step = torch.load(best, weights_only=True)["global_step"]
    assert model["trained for"].startswith(f"{step} steps")
    assert "`val/accuracy`" in model["chosen by"]
    data = dict(table(text, "Data"))
    assert data["identities"] == str(NUM_IDENTITIES)
    assert data["images"].startswith(f"{NUM_IDENTITIES * IMAGES_EACH},")
    assert "IdentityFolder" in data["training set"]
    assert data["started from"] == "random weights"
    assert data["people in both training and verification sets"].startswith("not recorded")
    assert "drawings" not in text


def test_results_are_the_logged_ones(finished: Path) -> None:
    best = best_of(finished)
    card(str(best), overwrite=True)
    text = (best.parent / "card.md").read_text()
    figures = logged(finished, torch.load(best, weights_only=True)["global_step"])
    ((name, pairs, accuracy, interval, auc, eer, *tars),) = table(text, "Results")
    assert (name, pairs) == ("`tiny`", "16")
    assert accuracy == f"{figures['accuracy']:.4f} ± {figures['accuracy_se']:.4f}"
    assert (auc, eer) == (f"{figures['auc']:.4f}", f"{figures['eer']:.4f}")
    expected = binomtest(round(16 * figures["accuracy"]), 16).proportion_ci(0.95, method="wilson")
    assert interval == f"{expected.low:.4f} to {expected.high:.4f}"
    assert tars == ["too few impostor pairs (8)"] * 2
    assert "mean over 2 folds" in text
    if figures["threshold"] < 1.5:  # infinity where nothing beats rejecting every pair
        assert table(text, "Thresholds")[0][2] == f"{figures['threshold']:.6f}"


def test_the_configuration_is_whole(finished: Path) -> None:
    best = best_of(finished)
    card(str(best), overwrite=True)
    text = (best.parent / "card.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert yaml.safe_load(block) == yaml.safe_load((finished / "config.yaml").read_text())
    assert "[config.yaml](../config.yaml)" in text


def test_pictures_are_linked_in_the_run_and_copied_elsewhere(finished: Path, tmp_path: Path) -> None:
    def links(path: Path) -> list[Path]:
        return [path.parent / link for link in re.findall(r"\]\(([^)]+)\)", path.read_text())]

    best = best_of(finished)
    card(str(best), out=str(finished / "inside.md"))
    assert [link.name for link in links(finished / "inside.md")] == ["tiny-roc.png", "config.yaml"]
    assert all(link.is_file() for link in links(finished / "inside.md"))
    card(str(best), overwrite=True)
    assert all(link.is_file() for link in links(best.parent / "card.md"))
    card(str(best), out=str(tmp_path / "out.md"))
    (picture,) = links(tmp_path / "out.md")
    assert picture == tmp_path / "out-tiny-roc.png"
    assert picture.read_bytes() == (finished / "tiny-roc.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-tiny-roc.png", "out.md"]


def test_a_moved_run_whose_data_are_gone_makes_nothing_up(finished: Path, tmp_path: Path) -> None:
    """Its crops cannot be counted any more: what only they knew is not recorded."""
    shutil.copytree(finished, tmp_path / "moved")
    config = tmp_path / "moved" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished.parents[2]), "/nowhere"))
    best = best_of(tmp_path / "moved")
    card(str(best), overwrite=True)
    text = (best.parent / "card.md").read_text()
    data = dict(table(text, "Data"))
    assert (data["identities"], data["images"]) == (str(NUM_IDENTITIES), "not recorded")
    assert "number not recorded" in text
    assert table(text, "Results")[0][-1] == "too few impostor pairs"
    config.unlink()
    (tmp_path / "moved" / "tiny-roc.png").unlink()
    card(str(best), overwrite=True)
    text = (best.parent / "card.md").read_text()
    assert headings(text) == HEADINGS
    assert dict(table(text, "Data"))["training set"] == "not recorded"
    assert "no ROC picture of `tiny`" in text
    assert "no `config.yaml`" in text


def test_a_training_set_that_has_changed_since_is_not_counted(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    shutil.copytree(finished.parents[2] / "crops", tmp_path / "crops")
    shutil.rmtree(tmp_path / "crops" / "person_07")
    config = tmp_path / "moved" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished.parents[2]), str(tmp_path)))
    facts = gather(best_of(tmp_path / "moved"))
    assert (facts.identities, facts.images) == (NUM_IDENTITIES, None)
    assert facts.measured[0].counts is None


DEMO: dict[str, Any] = {
    "data": {
        "train": {
            "class_path": "facelit.data.SyntheticFaces",
            "init_args": {"num_identities": 200, "images_per_identity": 20, "seed": 0},
        },
        "verification": {
            "drawn|set": {
                "class_path": "facelit.data.SyntheticPairs",
                "init_args": {"folds": 10, "pairs_per_fold": 60},
            }
        },
    }
}
FIGURES = {
    "pairs": 1200,
    "images": 1061,
    "accuracy": 0.69,
    "accuracy_se": 0.0109,
    "auc": 0.7713,
    "eer": 0.3033,
    "step": 125,
    "flip_average": True,
    "thresholds": {
        "best_accuracy": {"threshold": 0.9903, "far": 0.3517, "tar": 0.7583},
        "far_1e-2": {"threshold": 0.99996, "far": 0.01, "tar": 0.35},
    },
}


def write_run(folder: Path, step: int = 125, drawn_at: int = 125, **model: Any) -> Path:
    """A run on the built-in faces, as if finished; returns its best checkpoint."""
    arguments = {"width": 0.01, "embedding_dim": 16}
    checkpoint = {
        "state_dict": {f"backbone.{name}": value for name, value in VGG16(**arguments).state_dict().items()},
        "hyper_parameters": {
            "backbone": {"class_path": "facelit.backbones.VGG16", "init_args": arguments},
            **model,
        },
        "global_step": step,
        "epoch": 0,
        "facelit": {"num_identities": 200, "calibration": {"drawn|set": FIGURES}},
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    checkpoint["facelit"] = {"calibration": {"drawn|set": {**FIGURES, "step": drawn_at}}}
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(DEMO))
    (folder / "drawn|set-roc.png").write_bytes(b"a picture")
    return folder / "checkpoints" / "best.ckpt"


def written(checkpoint: Path) -> str:
    card(str(checkpoint), overwrite=True)
    return (checkpoint.parent / "card.md").read_text()


def test_drawn_faces_are_warned_of(tmp_path: Path) -> None:
    text = written(write_run(tmp_path / "run"))
    assert text.index("> **Not for photos of people.**") < text.index("## Model")
    assert "none: the built-in sets share no identity" in text
    assert "Drawn faces: the figures say nothing about people." in text
    assert "they do not hold for photos" in text
    data = dict(table(text, "Data"))
    assert (data["identities"], data["images"][:5]) == ("200", "4,000")


def test_tar_comes_with_its_impostor_pairs_and_interval(tmp_path: Path) -> None:
    text = written(write_run(tmp_path / "run"))
    (row,) = table(text, "Results")
    expected = binomtest(210, 600).proportion_ci(0.95, method="wilson")
    assert row[0] == "`drawn\\|set`"
    assert row[6] == f"0.3500 ({expected.low:.4f} to {expected.high:.4f}); at most 6 of 600 impostor pairs"
    assert row[7] == "too few impostor pairs (600)"
    assert "mean over 10 folds; embeddings were averaged with the mirror image's" in text
    thresholds = table(text, "Thresholds")
    assert [row[1:] for row in thresholds] == [
        ["most correct decisions", "0.990300", "0.3517", "0.7583"],
        ["FAR at most 1e-2", "0.999960", "0.0100", "0.3500"],
    ]


def test_names_with_signs_of_markdown_in_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    text = written(write_run(run))
    (target,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert unquote(target) == "../drawn|set-roc.png"
    assert re.fullmatch(r"[\w./%-]+", target)
    assert "`drawn|set`: " in text  # a backslash outside a table would be shown


def test_other_steps_are_told_apart(tmp_path: Path) -> None:
    """Weights, figures and picture may be of three different moments of the run."""
    text = written(write_run(tmp_path / "same"))
    assert "Drawn at step 125, when the figures above were measured." in text
    assert "before these weights" not in text
    text = written(write_run(tmp_path / "later", step=150, drawn_at=200))
    assert "Drawn at step 200; the figures above were measured at step 125." in text
    assert "was measured 25 steps before these weights were saved" in text


def test_what_the_network_started_from_is_named(tmp_path: Path) -> None:
    text = written(write_run(tmp_path / "transfer", init_backbone="other/last.ckpt"))
    assert "the backbone of `other/last.ckpt`" in text
    pretrained = {
        "class_path": "facelit.backbones.VGG16",
        "init_args": {"width": 0.01, "embedding_dim": 16, "weights": "imagenet"},
    }
    assert "weights `imagenet`: their training data counts" in written(
        write_run(tmp_path / "imagenet", backbone=pretrained)
    )


def test_a_teacher_is_named(tmp_path: Path) -> None:
    """Its figures must not be taken for what the labels give."""
    assert "teacher" not in dict(table(written(write_run(tmp_path / "alone", distillation=None)), "Model"))
    taught = {"teacher": "nets/mobile.ckpt", "weight": 20.0, "distance": "cosine", "view": "stored"}
    row = dict(table(written(write_run(tmp_path / "taught", distillation=taught)), "Model"))["teacher"]
    assert row.startswith("`mobile.ckpt` (weight: 20.0, distance: cosine, view: stored), whose embeddings")


def test_a_checkpoint_without_figures(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["facelit"]["calibration"]
    torch.save(checkpoint, path)
    text = written(path)
    assert headings(text) == HEADINGS
    assert "the checkpoint holds no figures" in text
    assert "need `--threshold`" in text


def test_the_last_configuration_of_a_resumed_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    for number in (1, 2, 10):
        (tmp_path / "run" / f"config-resumed-{number}.yaml").write_text(yaml.safe_dump({**DEMO, "start": number}))
    (tmp_path / "run" / "config-mine.yaml").write_text("start: mine")
    text = written(path)
    assert "start: 10" in text
    assert text.count("](../config") == 4


@pytest.mark.parametrize("content", ["not: [valid", "- a list", "data:\n  train: [1]\n"])
def test_a_broken_configuration_tells_nothing_and_is_shown(tmp_path: Path, content: str) -> None:
    path = write_run(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(content)
    text = written(path)
    assert dict(table(text, "Data"))["training set"] == "not recorded"
    assert content.strip() in text


class Strange(SyntheticFaces):
    """A source, but not one of facelit's."""

    made = 0

    def __init__(self, **arguments: Any) -> None:
        type(self).made += 1
        super().__init__(200, 20)


def test_classes_that_are_no_source_of_facelit_s_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "strange", SimpleNamespace(Strange=Strange))
    monkeypatch.setattr("facelit.data.datamodule.other", lambda: Strange(), raising=False)
    monkeypatch.setattr("facelit.data.FaceDataModule.__init__", lambda self: Strange() and None)
    for number, class_path in enumerate(
        ("strange.Strange", "facelit.data.datamodule.other", "facelit.data.FaceDataModule", "facelit.data.nothing.X")
    ):
        path = write_run(tmp_path / str(number))
        config = {"data": {"train": {"class_path": class_path}}}
        (tmp_path / str(number) / "config.yaml").write_text(yaml.safe_dump(config))
        facts = gather(path)
        assert (facts.identities, facts.images, Strange.made) == (200, None, 0)


def test_pairs_that_have_changed_since_are_not_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("pairs_per_fold: 60", "pairs_per_fold: 50"))
    text = written(path)
    assert table(text, "Results")[0][6] == "0.3500; impostor pairs not recorded"
    assert "number not recorded" in text


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (5, 5), (414, 600), (1, 12000)])
def test_wilson_against_scipy(successes: int, count: int) -> None:
    expected = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_card_that_is_there_is_kept(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path.parent / "card.md").write_text("mine")
    with pytest.raises(FacelitError, match=r"card\.md exists already.*--overwrite"):
        card(str(path))
    assert (path.parent / "card.md").read_text() == "mine"
    with pytest.raises(FacelitError, match="no such folder"):
        card(str(path), out=str(tmp_path / "absent" / "card.md"))
    with pytest.raises(FacelitError, match="is a folder"):
        card(str(path), out=str(tmp_path))


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "runs" / "demo" / "version_0")
    monkeypatch.chdir(tmp_path)
    main(["card", "--out", "README.md"])
    printed = capsys.readouterr()
    assert "README.md: the model card of" in printed.out
    assert "choose another with --checkpoint" in printed.err
    assert headings(Path("README.md").read_text()) == HEADINGS
    with pytest.raises(SystemExit) as end:
        main(["card", "--checkpoint", str(path.with_name("absent.ckpt"))])
    assert end.value.code == 2
    assert "absent.ckpt" in capsys.readouterr().err
