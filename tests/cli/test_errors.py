"""Every slip of a user's: a line or two, naming the file or option and the way out, status 2, no traceback.

One process runs them all (starting one takes seconds): each case is the real `main()` with the real arguments, and a few
go through a process of their own to see the exit status and both streams.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from facelit.cli import main
from tiny_run import ROOT, facelit, make_run, tiny_config, write_config, write_crops, write_pairs

Change = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops, pairs, configuration and a trained checkpoint; each test breaks a copy."""
    folder = tmp_path_factory.mktemp("template") / "run"
    folder.mkdir()
    main(["fit", "--config", str(make_run(folder)), "--trainer.max_epochs", "1"])
    return folder


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(template, folder)
    write_config(folder, tiny_config(folder))
    return folder


def fails(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "fit") -> str:
    """Runs the command line and returns its last message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", str(run / "tiny.yaml"), *arguments])
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "Expected a path but {" not in errors
    message = errors[errors.index("facelit: error: ") :].strip()
    assert len(message.splitlines()) <= 2
    assert len(message) < 900
    return message


def no_training_folder(run: Path) -> None:
    shutil.rmtree(run / "crops")
    write_crops(run / "verification")
    write_config(run, tiny_config(run, data__verification__tiny__init_args__root=str(run / "verification")))


def empty_training_folder(run: Path) -> None:
    (run / "empty").mkdir()
    write_config(run, tiny_config(run, data__train__init_args={"root": str(run / "empty")}))


def one_identity(run: Path) -> None:
    write_crops(run / "alone", num_identities=1)
    write_config(run, tiny_config(run, data__train__init_args={"root": str(run / "alone")}))


def images_in_the_root(run: Path) -> None:
    Image.new("RGB", (112, 112)).save(run / "crops" / "stray.png")


def truncated_image(run: Path) -> None:
    path = run / "crops" / "person_05" / "person_05_0006.png"
    path.write_bytes(path.read_bytes()[:3000])


def empty_image(run: Path) -> None:
    (run / "crops" / "person_05" / "person_05_0006.png").write_bytes(b"")


def wrong_size(run: Path) -> None:
    Image.new("RGB", (96, 112)).save(run / "crops" / "person_05" / "person_05_0006.png")


def broken_verification_image(run: Path) -> None:
    """Found before the first step: a thousand epochs would outlast the test."""
    write_crops(run / "verification")
    (run / "verification" / "person_02" / "person_02_0003.png").write_bytes(b"no image")
    config = tiny_config(run, data__verification__tiny__init_args__root=str(run / "verification"))
    write_config(run, config | {"trainer": config["trainer"] | {"max_epochs": 1000, "limit_val_batches": 0}})


def no_pairs_file(run: Path) -> None:
    (run / "pairs.txt").unlink()


def empty_pairs_file(run: Path) -> None:
    (run / "pairs.txt").write_text("")


def malformed_pairs_file(run: Path) -> None:
    lines = (run / "pairs.txt").read_text().splitlines()
    lines[6] = "person_01 three"
    (run / "pairs.txt").write_text("\n".join(lines))


def absent_images(run: Path) -> None:
    for person in ("person_01", "person_02"):
        (run / "crops" / person / f"{person}_0003.png").unlink()


BROKEN_DATA = [
    (no_training_folder, ["training folder not found", "crops", "data.train", "configs/demo.yaml"]),
    (empty_training_folder, ["empty", "no identities", "root/<identity>/<image>"]),
    (one_identity, ["alone", "1 identity", "at least two"]),
    (images_in_the_root, ["stray.png", "root/<identity>/<image>"]),
    (truncated_image, ["person_05_0006.png", "cannot read"]),
    (empty_image, ["person_05_0006.png", "the file is empty"]),
    (wrong_size, ["person_05_0006.png", "96x112", "resize: true"]),
    (broken_verification_image, ["verification", "person_02_0003.png", "cannot read"]),
    (no_pairs_file, ["pairs file not found", "pairs.txt"]),
    (empty_pairs_file, ["pairs.txt", "empty"]),
    (malformed_pairs_file, ["pairs.txt", "line 7", "impostor"]),
    (absent_images, ["2 of its 32 images are absent", "person_01_0003", "allow_missing: true"]),
]


# What a worker process meets must be named as well as what the main process does.
IN_A_WORKER = [(breaks, names, "1") for breaks, names in BROKEN_DATA if breaks in (truncated_image, wrong_size)]


@pytest.mark.parametrize(
    ("breaks", "names", "workers"), [(breaks, names, "0") for breaks, names in BROKEN_DATA] + IN_A_WORKER
)
def test_broken_data(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    breaks: Callable[[Path], None],
    names: list[str],
    workers: str,
) -> None:
    breaks(run)
    message = fails(run, capsys, "--data.num_workers", workers)
    for name in names:
        assert name in message


WRONG_OPTIONS = [
    # An option of another class, and what this one takes instead.
    (["--model.backbone.depth", "3"], ["unknown option depth", "This class takes embedding_dim, plain."]),
    (
        ["--data.verification", '{"t": {"class_path": "facelit.data.SyntheticPairs", "init_args": {"root": "x"}}}'],
        ["data.verification: ", " unknown option root.", "This class takes folds, images_per_identity"],
    ),
    (["--model.head", "ArcFaceHead", "--model.head.center.wight", "3"], ["unknown option wight. Did you mean weight?"]),
    (["--modl.head.alpha", "0.3"], ["--modl.head.alpha", "model.head.alpha"]),
    (["--trainer.max_epoch", "3"], ["--trainer.max_epoch", "trainer.max_epochs"]),
    (["--model.head.alfa", "0.3"], ["alfa", "alpha"]),
    (["--model.head", "CentreLossHead"], ["model.head", "CentreLossHead", "CenterLossHead", "TripletHead"]),
    (["--model.backbone", "facelit.backbones.VGG61"], ["VGG61", "VGG16", "TorchvisionBackbone"]),
    (["--model.head", "facelit.backbones.VGG16"], ["model.head", "VGG16", "not a Head"]),
    (["--model.optimizer", "Adagrat"], ["Adagrat", "Adagrad"]),
    (["--data.batch_size", "many"], ["data.batch_size", "int", "many"]),
    (["--data.batch_size", "1000"], ["batch_size", "48 images"]),
    (["--data.eval_batch_size", "0"], ["data.eval_batch_size", "at least 1"]),
    (["--data.verification.tiny.rot", "x"], ["rot", "root"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml", "not found"]),
    (["--model.lr_interval", "hour"], ["lr_interval", "hour"]),
    (["--trainer.overfit_batches", "1"], ["overfit_batches"]),
    (["--trainer.limit_val_batches", "1"], ["limit_val_batches 1", "tiny has 7 batches"]),
    (["--trainer.limit_val_batches", "0.5"], ["limit_val_batches 0.5", "part of a set"]),
    (["--trainer.val_check_interval", "500"], ["val_check_interval 500", "6 batches"]),
    (
        ["--trainer.val_check_interval", "3", "--trainer.accumulate_grad_batches", "2"],
        ["multiple of", "accumulate_grad_batches"],
    ),
    (
        ["--trainer.val_check_interval", "0.5", "--trainer.accumulate_grad_batches", "2"],
        ["of 3 batches", "between two optimizer steps", "a multiple of 2 batches"],
    ),
    (
        ["--trainer.val_check_interval", "00:00:05:00", "--trainer.accumulate_grad_batches", "2"],
        ["by time", "between two optimizer steps"],
    ),
    (
        [
            *("--trainer.val_check_interval", "8", "--trainer.accumulate_grad_batches", "4"),
            *("--trainer.check_val_every_n_epoch", "null"),
        ],
        ["of 8 batches", "where an epoch (6) is one too"],
    ),
    (["--trainer.val_check_interval", "0"], ["val_check_interval", "at least 1"]),
    (
        ["--trainer.val_check_interval", "5", "--trainer.limit_train_batches", "4"],
        ["val_check_interval 5", "4 batches"],
    ),
    (["--verification.hardest_pairs=-1"], ["verification.hardest_pairs", "-1"]),
    (["--last_checkpoint.every_n_train_steps", "0"], ["last_checkpoint.every_n_train_steps", "at least 1"]),
    (["--model.optimizer.lr=-1"], ["model.optimizer", "-1"]),
    (["--data.verification.tiny.folds", "[2]"], ["at least two folds", "pairs.txt"]),
    (["--data.train.exclude_identities", str(ROOT / "constraints.txt")], ["none of its", "person_00"]),
    (
        [
            *("--model.lr_scheduler", "WarmupCosine", "--model.lr_interval", "step", "--trainer.max_epochs=-1"),
            *("--trainer.max_time", "00:00:00:09"),
        ],
        ["the schedule", "max_epochs"],
    ),
    (["--model.lr_scheduler", "WarmupCosine"], ["WarmupCosine", "model.lr_interval to step"]),
    (["--ckpt_path", "nowhere.ckpt"], ["checkpoint not found", "nowhere.ckpt"]),
    (
        ["--data.sampler", "IdentityBalancedSampler", "--data.sampler.identities_per_batch", "9"],
        ["P x K", "identities_per_batch", "8 identities"],
    ),
    (
        [
            *("--data.sampler", "IdentityBalancedSampler", "--data.sampler.identities_per_batch", "2"),
            "--data.sampler.images_per_identity",
            "7",
        ],
        ["P x K", "images_per_identity", "6"],
    ),
    (
        ["--model.backbone", "TorchvisionBackbone", "--model.backbone.name", "resnet5"],
        ["resnet5", "resnet50"],
    ),
    (["--model.head", "TripletHead", "--model.head.mining", "random"], ["RandomTripletSampler"]),
    (["--model.head", "TripletHead", "--model.head.mining", "semi"], ["mining", "semihard"]),
    (["--model.head.alpha", "-1"], ["alpha", "-1"]),
    (["--model.backbone", "VGG16", "--model.backbone.width", "0"], ["width"]),
    (["--data.train", "SyntheticFaces", "--data.train.num_identities", "1"], ["not 1 of 20"]),
]


@pytest.mark.parametrize(("arguments", "names"), WRONG_OPTIONS, ids=[" ".join(case[0][-2:]) for case in WRONG_OPTIONS])
def test_wrong_options(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], names: list[str]) -> None:
    message = fails(run, capsys, *arguments)
    for name in names:
        assert name in message


def test_a_key_that_no_option_has(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(run)
    config["data"]["num_wokers"] = 3
    write_config(run, config)
    message = fails(run, capsys)
    assert "num_wokers" in message
    assert "num_workers" in message


def test_a_configuration_that_is_no_yaml(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "tiny.yaml").write_text("a: [b\n")
    message = fails(run, capsys)
    assert "tiny.yaml" in message
    assert "not a YAML file" in message


def last(run: Path) -> Path:
    return max(run.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)


def test_checkpoints_that_are_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = run / "fake.ckpt"
    fake.write_bytes(b"no checkpoint")
    assert "not a checkpoint" in fails(run, capsys, "--ckpt_path", str(fake), command="validate")
    fake.write_bytes(last(run).read_bytes()[:5000])
    assert "fake.ckpt" in fails(run, capsys, "--ckpt_path", str(fake), command="validate")
    torch.save({"weights": torch.zeros(3)}, fake)
    assert "no `state_dict`" in fails(run, capsys, "--ckpt_path", str(fake))
    torch.save({"state_dict": {}, "evil": Path("/tmp")}, fake)
    assert "fake.ckpt" in fails(run, capsys, "--ckpt_path", str(fake))


def test_checkpoints_that_do_not_fit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_crops(run / "more", num_identities=11)
    more = ["--data.train.root", str(run / "more"), "--ckpt_path", str(last(run))]
    message = fails(run, capsys, *more)
    assert "8x16 in the checkpoint and 11x16 here" in message
    message = fails(run, capsys, "--ckpt_path", str(last(run)), "--model.backbone.plain", "true")
    assert "backbone.plain is False in the checkpoint and True in the configuration" in message
    message = fails(run, capsys, "--ckpt_path", str(last(run)), "--model.head", "SoftmaxHead")
    assert "head.class_path" in message
    message = fails(run, capsys, "--ckpt_path", str(last(run)), "--model.optimizer.lr", "0.5")
    assert "optimizer.lr is 0.02 in the checkpoint and 0.5" in message
    message = fails(run, capsys, "--model.init_backbone", str(last(run)), "--model.backbone.embedding_dim", "24")
    assert "init_backbone" in message
    assert "in the checkpoint and 24" in message


def test_a_foreign_class_in_a_checkpoint_is_not_imported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(last(run), weights_only=True)
    checkpoint["hyper_parameters"]["backbone"]["class_path"] = "antigravity.Backbone"
    torch.save(checkpoint, run / "foreign.ckpt")
    message = fails(run, capsys, "--ckpt_path", str(run / "foreign.ckpt"), command="validate")
    assert "antigravity.Backbone" in message
    assert "antigravity" not in sys.modules


def test_what_is_missing_is_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ckpt_path" in fails(run, capsys, command="validate")
    assert "--data.predict" in fails(run, capsys, "--ckpt_path", str(last(run)), command="predict")
    assert "data.verification" in fails(
        run, capsys, "--ckpt_path", str(last(run)), "--data.verification", "null", command="test"
    )
    assert "configs/demo.yaml" in fails(run, capsys, "--data.train", "null")
    shutil.rmtree(run / "runs")
    assert "no last.ckpt" in fails(run, capsys, "--ckpt_path", "last")


def test_nan_loss_names_step_rate_and_last_good_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(run, capsys, "--ckpt_path", "last", "--model.head.weight", "1e39", "--trainer.max_epochs", "3")
    assert "NaN or infinite since step 7 (learning rate 0.014)" in message
    assert str(last(run)) in message


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["fit", "--config", ROOT / "configs" / "center.yaml"], "configs/demo.yaml"),
        (["fitt"], "fit"),
    ],
    ids=["no data", "no such subcommand"],
)
def test_as_typed(tmp_path: Path, arguments: list[str], name: str) -> None:
    """In a process of its own: the status, and nothing but the message at the end."""
    finished = facelit(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert name in finished.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_shipped_pairs_helpers_agree(tmp_path: Path) -> None:
    """`write_pairs` writes what the broken files above are broken from."""
    rows = write_pairs(tmp_path / "pairs.txt").read_text().splitlines()
    assert yaml.safe_load(rows[0].replace("\t", " ")) == "2 4"
    assert len(rows) == 17
