"""Checkpoint against configuration: who wins, and telling the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from facelit.checkpoints import num_identities
from facelit.errors import FacelitError
from facelit.importing.checkpoint import imported_as, read_any, refuse_frozen

_SIZED_ELSEWHERE = ("num_identities", "embedding_dim")


def adopt_model(model: Namespace, checkpoint: Mapping[str, Any]) -> None:
    """For validate, test and predict: the network is the checkpoint's, whatever the configuration says.

    Differences are named in one line. A checkpoint that holds no configuration (not made from the command line) leaves
    the configuration as it is.
    """
    trained = checkpoint.get("hyper_parameters", {})
    record = imported_as(checkpoint)
    changed = [f"{record['network']}, fed {record['feed']}"] if record else []
    for part in ("backbone", "head"):
        if not isinstance(trained.get(part), Mapping):
            continue
        if not record:
            changed += _differences(part, model[part], trained[part])
        _refuse_strange_class(part, trained[part]["class_path"], model[part])
        init_args = dict(trained[part].get("init_args", {}))
        if "weights" in init_args:
            init_args["weights"] = None  # the checkpoint brings them: nothing to download
        if num_identities(checkpoint) is None:
            init_args.pop("num_identities", None)  # the link wrote it beside a head that takes none
        model[part] = _namespace({"class_path": trained[part]["class_path"], "init_args": init_args})
    if record:
        # There is no head in it. Nothing here computes a loss: one without parameters takes its place.
        model.head = _namespace({"class_path": "facelit.heads.TripletHead", "init_args": {}})
    model.init_backbone = None
    if changed:
        rank_zero_info(f"The checkpoint's network is used, not the configuration's: {'; '.join(changed)}")


def _refuse_strange_class(part: str, class_path: str, configured: Namespace) -> None:
    """A checkpoint from a stranger must not make this program import whatever it names."""
    if not class_path.startswith("facelit.") and class_path != _class_path(configured):
        raise FacelitError(
            f"the checkpoint's {part} is of class {class_path}, which is not facelit's. If you trust it, name it in your"
            f" configuration: --model.{part} {class_path}"
        )


def adopt_init_backbone(model: Namespace) -> None:
    """For a fit that starts from somebody else's weights: the network is theirs, whatever the configuration says.

    Nobody can be expected to type what an imported network is built with. A checkpoint of facelit's own leaves the configuration
    as it is, which has to fit.

    Raises:
        FacelitError: The file is unknown, or cannot be trained.
    """
    path = model.init_backbone
    checkpoint = read_any(path)
    record = imported_as(checkpoint)
    if not record:
        return
    refuse_frozen(checkpoint, path)
    backbone = checkpoint["hyper_parameters"]["backbone"]
    model.backbone = _namespace(backbone)
    if "embedding_dim" in model.head.get("init_args", {}):
        model.head.init_args.embedding_dim = backbone["init_args"]["embedding_dim"]
    rank_zero_info(
        f"The network is that of {path}, not the configuration's: {record['network']}, fed {record['feed']}."
    )


def refuse_other_model(model: Namespace, checkpoint: Mapping[str, Any], path: str) -> None:
    """For a resumed fit: the head's own settings may change and are named; another network or optimizer stops.

    Raises:
        FacelitError: The configuration asks for another backbone, head, optimizer or schedule than the run has.
    """
    if imported_as(checkpoint):
        raise FacelitError(
            f"{path} was imported: there is no run to resume. Start one from it: --model.init_backbone {path}, without --ckpt_path."
        )
    trained = checkpoint.get("hyper_parameters", {})
    same_head = _class_path(model.head) == _class_path(trained.get("head"))
    stops: list[str] = []
    notes: list[str] = []
    for part in ("backbone", "head", "optimizer", "lr_scheduler"):
        if part in trained:
            (notes if part == "head" and same_head else stops).extend(
                _differences(part, model.get(part), trained[part])
            )
    if stops:
        raise FacelitError(
            f"{path} was trained with different settings: {'; '.join(stops)}. A resumed run keeps these: drop the change, or start a new"
            f" run from its backbone (--model.init_backbone {path}, without --ckpt_path)."
        )
    if notes:
        rank_zero_info(f"Resuming with changed settings: {'; '.join(notes)}")
    # The network comes from the checkpoint: what it started from does not matter any more.
    model.init_backbone = None
    if "weights" in model.backbone.get("init_args", {}):
        model.backbone.init_args.weights = None


def _differences(part: str, configured: Any, trained: Any) -> Iterator[str]:
    now, then = dict(_flatten(_plain(configured))), dict(_flatten(_plain(trained)))
    for key in sorted({*now, *then}):
        if key.rsplit(".", 1)[-1] not in _SIZED_ELSEWHERE and now.get(key) != then.get(key):
            name = ".".join(filter(None, (part, key.replace("init_args.", ""))))
            yield f"{name} is {_show(then.get(key))} in the checkpoint and {_show(now.get(key))} in the configuration"


def _namespace(value: Any) -> Any:
    """A class's specification as jsonargparse has it, with those among its arguments; dicts of other kinds stay dicts."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    arguments = {name: _namespace(inner) for name, inner in value.get("init_args", {}).items()}
    init_args = Namespace(**arguments)  # type: ignore[no-untyped-call]  # jsonargparse's own
    return Namespace(class_path=value["class_path"], init_args=init_args)  # type: ignore[no-untyped-call]  # likewise


def _plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(_plain(inner), f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _class_path(value: Any) -> Any:
    plain = _plain(value)
    return plain.get("class_path") if isinstance(plain, Mapping) else plain


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)
