"""The contract with Lightning: on a release that lacks or changes a private name, the test of that name fails."""

import ast
import inspect
import signal
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, OnExceptionCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from facelit import lightning
from facelit.lightning import PRIVATE_NAMES, Place, looks_after_epochs

ROOT = Path(__file__).resolve().parents[1]
DOOR = ROOT / "facelit" / "lightning.py"


class Module(LightningModule):
    """Four batches an epoch; `notes` collects what `look` sees in each."""

    def __init__(self, look: Callable[["Module"], Any] = lambda module: None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.look = look
        self.notes: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.notes.append(self.look(self))
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Module, folder: Path, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=folder, **quiet, **options)
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=1), ckpt_path=ckpt_path)
    return trainer


def calls(function: Any, name: str) -> bool:
    """Whether a function's source calls a method or reads an attribute of this name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return name in attributes or name in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def _given_hyperparameters(folder: Path) -> None:
    class Made(LightningModule):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.by_command_line = lightning.made_by_command_line()

    arguments = ["--model.width=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    cli = LightningCLI(Made, run=False, args=arguments, save_config_callback=None, auto_configure_optimizers=False)
    assert cli.model.by_command_line
    assert not Made().by_command_line


def _multi_processing_launcher(folder: Path) -> None:
    spawning, scripts = (
        Trainer(strategy=name, accelerator="cpu", devices=2, logger=False).strategy for name in ("ddp_spawn", "ddp")
    )
    assert lightning.spawns_processes(spawning)
    assert not lightning.spawns_processes(scripts)


def _restarting(folder: Path) -> None:
    """The fit loop's own setter would keep it on under max_steps."""
    trainer = Trainer(accelerator="cpu", max_steps=9, logger=False)
    trainer.fit_loop.restarting = True
    assert trainer.fit_loop.restarting
    lightning.forget_finished_epoch(trainer)
    assert trainer.fit_loop.restarting is False
    assert trainer.fit_loop.epoch_loop.restarting is False


def _batches_that_stepped(folder: Path) -> None:
    trainer = fit(Module(), folder, max_epochs=1)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 4
    lightning.finish_epoch(trainer)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 5
    assert "_batches_that_stepped" in trainer.fit_loop.epoch_loop.on_save_checkpoint()
    assert lightning.place_in_run(trainer).epochs_finished == 2


def _can_stop_early(folder: Path) -> None:
    trainer = fit(Module(), folder, max_epochs=2, min_steps=7)
    assert not lightning.stops_after_batch(trainer)
    trainer.should_stop = True
    assert lightning.stops_after_batch(trainer)
    trainer.fit_loop.epoch_loop.min_steps = 9
    assert not lightning.stops_after_batch(trainer)


def _broadcast_sigterm_tensor(folder: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False)
    loop = trainer.fit_loop.epoch_loop
    assert calls(type(loop).advance, "_broadcast_sigterm_tensor")
    assert callable(type(loop)._broadcast_sigterm_tensor)
    asked: list[int] = []
    lightning.replace_sigterm_check(trainer, lambda: asked.append(1))
    loop._broadcast_sigterm_tensor()
    assert asked


def _signal_connector(folder: Path) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look(module: Module) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    class Handled(Module):
        def setup(self, stage: str) -> None:
            lightning.on_signals(
                self.trainer, lambda: None, lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN) and None
            )

    fit(Handled(look), folder, max_epochs=1)
    assert set(seen) == {signal.SIG_IGN}
    assert signal.getsignal(signal.SIGTERM) == before


def _validation_follows(folder: Path) -> None:
    """Lightning validates where it is said to, and first of all where a checkpoint is changed accordingly."""

    class Validated(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.notes.append("validated")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.notes.append(lightning.validation_follows(self.trainer))
            if batch_idx == 1:
                self.trainer.save_checkpoint(folder / "due.ckpt")

    def train(module: Module, **options: Any) -> list[Any]:
        module.look = lambda module: "trained"
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(
            accelerator="cpu", logger=False, val_check_interval=2, max_epochs=1, num_sanity_val_steps=0, **quiet
        )
        loader = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=1)
        trainer.fit(module, loader, DataLoader(TensorDataset(torch.ones(1, 1))), **options)
        return module.notes

    assert train(Validated()) == ["trained", False, "trained", True, "validated"] * 2
    content = torch.load(folder / "due.ckpt", weights_only=True)
    lightning.begin_with_validation(content["loops"])
    torch.save(content, folder / "due.ckpt")

    class Resumed(Validated):
        def on_train_start(self) -> None:
            self.notes.append(lightning.validation_pending(self.trainer))

        def on_validation_start(self) -> None:
            lightning.forget_validation(self.trainer)

    notes = train(Resumed(), ckpt_path=folder / "due.ckpt")
    assert notes == [True, "validated", "trained", False, "trained", True, "validated"]


def _accelerator_connector(folder: Path) -> None:
    plugins = [
        SLURMEnvironment(requeue_signal=signal.SIGUSR2),
        SLURMEnvironment(auto_requeue=False),
        LightningEnvironment(),
    ]
    trainers = [Trainer(accelerator="cpu", logger=False, plugins=[plugin]) for plugin in plugins]
    assert [lightning.requeue_signal(trainer) for trainer in trainers] == [signal.SIGUSR2, None, None]


def _select_ckpt_path(folder: Path) -> None:
    """What another run's `OnExceptionCheckpoint` has left is taken up, unless Lightning is told not to; a file that is named, always."""
    (folder / "on_exception.ckpt").touch()
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[OnExceptionCheckpoint(folder)])
    trainer.state.fn = TrainerFn.FITTING

    def selected(ckpt_path: str | None) -> Any:
        return trainer._checkpoint_connector._select_ckpt_path(trainer.state.fn, ckpt_path, True, False)

    assert calls(Trainer._fit_impl, "_select_ckpt_path")
    assert Path(selected(None)) == folder / "on_exception.ckpt"
    lightning.start_anew_unless_told(trainer)
    assert selected(None) is None
    assert selected("named.ckpt") == "named.ckpt"


def _check_on_train_epoch_end(folder: Path) -> None:
    told = [looks_after_epochs(EarlyStopping("x", check_on_train_epoch_end=value)) for value in (True, False, None)]
    assert told == [True, False, False]


def _combined_loader(folder: Path) -> None:
    module = Module(lambda module: lightning.batches_in_epoch(module.trainer))
    fit(module, folder, max_epochs=1)
    assert module.notes == [4] * 4


def _launch_process_observer(folder: Path) -> None:
    from pytorch_lightning.strategies.launchers import subprocess_script

    original = subprocess_script._launch_process_observer
    assert "_launch_process_observer(self.procs)" in inspect.getsource(
        subprocess_script._SubprocessScriptLauncher.launch
    )
    try:
        lightning.replace_process_observer(lambda children: None)
        assert subprocess_script._launch_process_observer is not original
    finally:
        subprocess_script._launch_process_observer = original


def _create_c10d_store(folder: Path) -> None:
    """What an earlier start has left in a store is not found by the next."""
    rendezvous: Any = import_module("torch.distributed.rendezvous")
    original, store = rendezvous._create_c10d_store, HashStore()
    assert "_create_c10d_store(" in inspect.getsource(rendezvous._env_rendezvous_handler)
    try:
        rendezvous._create_c10d_store = lambda *args: store
        store.set("address", "old")
        lightning.separate_restarts("1")
        assert not rendezvous._create_c10d_store("host", 1).check(["address"])
    finally:
        rendezvous._create_c10d_store = original


def _get_default_store(folder: Path) -> None:
    assert lightning.default_store() is None
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        store = lightning.default_store()
        assert store is not None
        assert [store.compare_set("key", "", word) for word in ("first", "second")] == [b"first"] * 2
        assert store.check(["key"])
    finally:
        torch.distributed.destroy_process_group()


def _parse_ckpt_path(folder: Path) -> None:
    assert callable(LightningCLI._parse_ckpt_path)
    assert calls(LightningCLI.__init__, "_parse_ckpt_path")


def _ddp_params_and_buffers_to_ignore(folder: Path) -> None:
    model = Module()
    lightning.exclude_from_ddp(model, ["layer.bias"])
    source = inspect.getsource(DistributedDataParallel.__init__)
    assert '"_ddp_params_and_buffers_to_ignore"' in source or "._ddp_params_and_buffers_to_ignore" in source
    assert model._ddp_params_and_buffers_to_ignore == ["layer.bias"]


def _step_supports_amp_scaling(folder: Path) -> None:
    fused = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, fused=True)
    assert lightning.unscales_in_step(fused)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        MixedPrecision("bf16-mixed", "cpu").clip_gradients(fused, clip_val=1.0)
    lightning.forbid_fused_unscaling(fused)
    assert not lightning.unscales_in_step(fused)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(fused, clip_val=1.0)


def _torch_dynamo_exception(folder: Path) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    with pytest.raises(lightning.CompilationError):
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(1))


def _epoch_progress(folder: Path) -> None:
    module = Module(lambda module: lightning.place_in_run(module.trainer))
    trainer = fit(module, folder, max_epochs=2)
    assert [place[:2] for place in module.notes] == [(epoch, True) for epoch in (0, 1) for _ in range(4)]
    assert lightning.place_in_run(trainer)[:2] == (2, False)


def _batch_progress(folder: Path) -> None:
    module = Module(lambda module: lightning.place_in_run(module.trainer).batches_begun)
    fit(module, folder, max_epochs=2)
    assert module.notes == [1, 2, 3, 4] * 2
    ends = Module(lambda module: lightning.ends_step(module.trainer, len(module.notes)))
    fit(ends, folder, max_epochs=1, accumulate_grad_batches=3)
    assert ends.notes == [False, False, True, True]


def _reset_restart_stage(folder: Path) -> None:
    """Resumed after an epoch: the next one must count as begun."""
    first = fit(Module(), folder, max_epochs=1)
    first.save_checkpoint(folder / "end.ckpt")

    class Resumed(Module):
        def on_train_start(self) -> None:
            lightning.begin_next_epoch(self.trainer)

    module = Resumed(lambda module: lightning.place_in_run(module.trainer))
    fit(module, folder, ckpt_path=folder / "end.ckpt", max_epochs=2)
    assert module.notes == [Place(1, True, batch) for batch in (1, 2, 3, 4)]


def _logger_connector(folder: Path) -> None:
    """Early, and each figure once; what callbacks log afterwards, too."""
    written: list[tuple[int | None, dict[str, float]]] = []

    class Recorder(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            written.append((step, {name: value for name, value in metrics.items() if name != "epoch"}))

    class Early(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
            pl_module.log("early", 1.0)
            lightning.log_figures_now(trainer)
            assert written[-1][0] == trainer.global_step - 1
            pl_module.log("late", float(trainer.global_step))

    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logs: dict[str, Any] = {"logger": Recorder(folder), "callbacks": [Early()], "log_every_n_steps": 1}
    trainer = Trainer(accelerator="cpu", max_steps=2, **logs, **quiet)
    trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=1))
    # What a callback logs later is still that of the step before, at first.
    assert written == [(0, {"early": 1.0}), (0, {"late": 1.0}), (1, {"early": 1.0, "late": 1.0}), (1, {"late": 2.0})]


PROBES: dict[str, Callable[[Path], None]] = {
    "_given_hyperparameters": _given_hyperparameters,
    "_MultiProcessingLauncher": _multi_processing_launcher,
    "_Loop.restarting": _restarting,
    "_batches_that_stepped": _batches_that_stepped,
    "_logger_connector": _logger_connector,
    "_can_stop_early": _can_stop_early,
    "_broadcast_sigterm_tensor": _broadcast_sigterm_tensor,
    "_signal_connector": _signal_connector,
    "_should_check_val_fx": _validation_follows,
    "_data_fetcher": _validation_follows,
    "_launch_process_observer": _launch_process_observer,
    "_create_c10d_store": _create_c10d_store,
    "_get_default_store": _get_default_store,
    "_accelerator_connector": _accelerator_connector,
    "_select_ckpt_path": _select_ckpt_path,
    "_check_on_train_epoch_end": _check_on_train_epoch_end,
    "_combined_loader": _combined_loader,
    "_parse_ckpt_path": _parse_ckpt_path,
    "_ddp_params_and_buffers_to_ignore": _ddp_params_and_buffers_to_ignore,
    "_step_supports_amp_scaling": _step_supports_amp_scaling,
    "TorchDynamoException": _torch_dynamo_exception,
    "fit_loop.epoch_progress.current": _epoch_progress,
    "fit_loop.epoch_loop.batch_progress.current": _batch_progress,
    "fit_loop.reset_restart_stage": _reset_restart_stage,
}


def probe(name: str, folder: Path) -> None:
    """Runs a name's probe; whatever goes wrong is reported under that name, with what facelit loses."""
    try:
        PROBES[name](folder)
    except Exception as error:
        pytest.fail(f"{name} is missing or has changed: {PRIVATE_NAMES[name]} ({type(error).__name__}: {error})")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_lightning_still_has(name: str, tmp_path: Path) -> None:
    probe(name, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["_can_stop_early", "_broadcast_sigterm_tensor", "_parse_ckpt_path"])
def test_a_name_that_is_gone_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = Trainer(accelerator="cpu", logger=False).fit_loop
    owner = next(owner for owner in (type(loops), type(loops.epoch_loop), LightningCLI) if hasattr(owner, name))
    monkeypatch.setattr(owner, f"{name}_renamed", vars(owner)[name], raising=False)
    monkeypatch.delattr(owner, name)
    with pytest.raises(pytest.fail.Exception, match=f"^{name} is missing or has changed: {PRIVATE_NAMES[name][:20]}"):
        probe(name, tmp_path)


def test_private_names_of_lightning_are_used_in_one_file() -> None:
    """Imports of `_names` from Lightning or torch anywhere else, and attributes that stand in the table."""
    names = {name.rpartition(".")[2] for name in PRIVATE_NAMES} - {"current", "restarting"} | {"fit_loop", "_trainer"}
    found = []
    for path in sorted({*(ROOT / "facelit").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")} - {DOOR}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pytorch_lightning", "torch")):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                private += [part for part in (node.module or "").split(".") if part.startswith("_")]
                found += [f"{path.name}: {name}" for name in private]
            elif isinstance(node, ast.Attribute) and node.attr in names:
                found.append(f"{path.name}: {node.attr}")
            elif isinstance(node, ast.FunctionDef) and node.name in names - {"fit_loop"}:
                found.append(f"{path.name}: {node.name}")
    assert not found


def test_the_strategy_of_face_ddp_is_configured_where_lightning_says() -> None:
    """`FaceDDP` registers its compression there; it is public, but must still be what `setup` calls."""
    assert calls(DDPStrategy.setup, "configure_ddp")
    assert sys.modules[DDPStrategy.__module__].DistributedDataParallel is DistributedDataParallel
