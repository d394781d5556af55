"""Writes a model card's Markdown."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from facelit.export.card_facts import Configured, Facts, Measured
from facelit.verification.protocol import FAR_TARGETS
from facelit.version import __version__

_UNKNOWN = "not recorded"
_Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
_THRESHOLDS = {
    "best_accuracy": "most correct decisions",
    "far_1e-2": "FAR at most 1e-2",
    "far_1e-3": "FAR at most 1e-3",
}
_DRAWN = "facelit.data.Synthetic"


def card_text(facts: Facts, pictures: Mapping[str, str | None], configs: Sequence[str]) -> str:
    """Writes the whole card.

    Args:
        facts: What is known of the checkpoint.
        pictures: The path of each verification set's ROC picture, relative to the card; None if there is no picture.
        configs: Paths of the run's configuration files, relative to the card; empty if the card is outside the run's folder.

    Returns:
        Markdown with GitHub's tables.
    """
    parts = [
        _head(facts),
        _model(facts),
        _data(facts),
        _results(facts, pictures),
        _thresholds(facts),
        _use(facts),
        _limits(facts),
        _configuration(facts, configs),
    ]
    return "\n\n".join(parts) + "\n"


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share observed in `count` independent trials.

    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    """
    spread = _Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return centre - half, centre + half


def _head(facts: Facts) -> str:
    name = facts.backbone.name if facts.backbone else "A backbone"
    if facts.imported:
        name = _text(facts.imported["network"])
    today = datetime.date.today().isoformat()
    lines = [
        f"# Face embeddings by {name}",
        f"Model card of the checkpoint {_code(facts.checkpoint.name)}, written by facelit {__version__} on {today}.",
    ]
    if _is_drawn(facts.training):
        lines.append(
            "> **Not for photos of people.** This network was trained on facelit's built-in faces, which are drawings. It shows"
            " that the software works, but has learned nothing about people."
        )
    return "\n\n".join(lines)


def _model(facts: Facts) -> str:
    epoch = f" (in epoch {facts.epoch:,})" if facts.epoch else ""
    chosen = (
        f"the best `{facts.chosen_by}` among its run's checkpoints"
        if facts.chosen_by
        else "nothing: it is the run's latest"
    )
    if facts.chosen_by is None and facts.checkpoint.name != "last.ckpt":
        chosen = _UNKNOWN
    trained = f"{facts.step:,} steps{epoch}"
    if facts.imported:
        trained = chosen = _UNKNOWN
    rows = [
        *_imported_rows(facts.imported),
        ("backbone", _describe(facts.backbone)),
        ("parameters", f"{facts.parameters:,}"),
        ("input", "an aligned face of 112x112 pixels, RGB, `(x - 127.5) / 127.5`"),
        ("output", f"an embedding of {facts.embedding_dim} numbers; faces are compared by cosine similarity"),
        ("loss", _describe(facts.head)),
        *_teacher_rows(facts.teacher),
        ("optimizer", _describe(facts.optimizer)),
        ("trained for", trained),
        ("chosen by", chosen),
    ]
    return "## Model\n\n" + _table(("", ""), rows)


def _teacher_rows(teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not teacher:
        return []
    name = Path(str(teacher.get("teacher"))).name
    options = ", ".join(f"{key}: {value}" for key, value in teacher.items() if key != "teacher")
    return [
        (
            "teacher",
            f"{_code(name)} ({options}), whose embeddings it was trained to follow: its licence may cover this network",
        )
    ]


def _imported_rows(imported: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not imported:
        return []
    return [
        ("imported from", f"{_code(imported['file'])}, sha256 {_code(imported['sha256'])}"),
        ("weights of", _text(imported["home"] or _UNKNOWN)),
        ("licence of the weights", _text(imported["licence"] or _UNKNOWN)),
        ("preprocessing in the network", _text(imported["feed"])),
    ]


def _data(facts: Facts) -> str:
    images = f"{facts.images:,}, counted when this card was written" if facts.images is not None else _UNKNOWN
    rows = [
        ("training set", _describe(facts.training)),
        ("identities", f"{facts.identities:,}" if facts.identities is not None else _UNKNOWN),
        ("images", images),
        ("started from", _started_from(facts)),
        ("people in both training and verification sets", _overlap(facts)),
    ]
    return "## Data\n\n" + _table(("", ""), rows)


def _started_from(facts: Facts) -> str:
    if facts.imported:
        return "weights trained by others; see their source for the training data"
    if facts.backbone is None:
        return _UNKNOWN
    if facts.init_backbone:
        return f"the backbone of {_code(facts.init_backbone)}: its training data counts as this network's too"
    if facts.backbone.init_args.get("weights"):
        return f"weights {_code(facts.backbone.init_args['weights'])}: their training data counts as this network's too"
    return "random weights"


def _overlap(facts: Facts) -> str:
    sources = [one.source for one in facts.measured]
    if _is_drawn(facts.training) and sources and all(map(_is_drawn, sources)):
        return "none: the built-in sets share no identity"
    return f"{_UNKNOWN}; `facelit check TRAINING --against VERIFICATION` finds them"


def _results(facts: Facts, pictures: Mapping[str, str | None]) -> str:
    if not facts.measured:
        return (
            "## Results\n\nNot recorded: the checkpoint holds no figures. `facelit validate ... --verification.calibrate true`"
            " measures it and adds them."
        )
    columns = (
        "set",
        "pairs",
        "accuracy",
        "95 % interval",
        "AUC",
        "EER",
        *(f"TAR at FAR {_far(t)}" for t in FAR_TARGETS),
    )
    parts = [
        "## Results",
        _table(columns, [_result_row(one) for one in facts.measured]),
        "\n".join(f"- {note}" for note in _result_notes(facts)),
        *(_picture(one, pictures[one.name], facts.step) for one in facts.measured),
    ]
    return "\n\n".join(parts)


def _result_row(one: Measured) -> tuple[str, ...]:
    figures = one.figures
    low, high = wilson_interval(figures["accuracy"], figures["pairs"])
    return (
        _code(one.name),
        f"{figures['pairs']:,}",
        f"{figures['accuracy']:.4f} ± {figures['accuracy_se']:.4f}",
        f"{low:.4f} to {high:.4f}",
        f"{figures['auc']:.4f}",
        f"{figures['eer']:.4f}",
        *(_tar(one, target) for target in FAR_TARGETS),
    )


def _tar(one: Measured, target: float) -> str:
    """TAR at a FAR, with its interval and the number of impostor pairs behind the FAR, if these are known."""
    point = one.figures["thresholds"].get(f"far_{_far(target)}")
    if point is None:
        return "too few impostor pairs" + (f" ({one.counts.impostors:,})" if one.counts else "")
    if one.counts is None:
        return f"{point['tar']:.4f}; impostor pairs {_UNKNOWN}"
    low, high = wilson_interval(point["tar"], one.counts.genuine)
    allowed = math.floor(target * one.counts.impostors + 1e-9)
    return (
        f"{point['tar']:.4f} ({low:.4f} to {high:.4f}); at most {allowed:,} of {one.counts.impostors:,} impostor pairs"
    )


def _result_notes(facts: Facts) -> Iterable[str]:
    for one in facts.measured:
        folds = f"{one.counts.folds} folds" if one.counts else f"the set's folds (number {_UNKNOWN})"
        flip = "; embeddings were averaged with the mirror image's" if one.figures.get("flip_average") else ""
        drawn = " **Drawn faces: the figures say nothing about people.**" if _is_drawn(one.source) else ""
        yield (
            f"{_code(one.name)}: {_describe(one.source)}, {one.figures['images']:,} images, measured at step"
            f" {one.figures['step']:,}; accuracy is the mean over {folds}{flip}.{drawn}"
        )
        if one.figures["step"] != facts.step:
            yield f"{_code(one.name)} was measured {facts.step - one.figures['step']:,} steps before these weights were saved."
    yield (
        "Accuracy ± standard error by LFW's View 2 protocol: each fold at the threshold that is best on the others. The intervals are"
        " Wilson's and assume independent pairs; pairs that share people make them a little too narrow."
    )
    yield (
        "TAR at FAR x: the share of genuine pairs accepted when at most a share x of the impostor pairs is, with its 95 % interval in"
        " brackets."
    )
    if facts.chosen_by == "val/accuracy":
        yield (
            f"The checkpoint was chosen by its accuracy on {_code(facts.measured[0].name)}: its figures there are slightly optimistic."
        )


def _picture(one: Measured, path: str | None, step: int) -> str:
    if path is None:
        return f"There is no ROC picture of {_code(one.name)} in the run's folder."
    if one.picture_step is None:
        when = "The run drew it at its last validation; its title names the step."
    elif one.picture_step == one.figures["step"]:
        when = f"Drawn at step {one.picture_step:,}, when the figures above were measured."
    else:
        when = f"Drawn at step {one.picture_step:,}; the figures above were measured at step {one.figures['step']:,}."
    return f"![ROC curve on {_text(one.name)}]({quote(path)})\n\nROC curve on {_code(one.name)}. {when}"


def _thresholds(facts: Facts) -> str:
    rows = [
        (_code(one.name), _THRESHOLDS.get(kind, kind), f"{at['threshold']:.6f}", f"{at['far']:.4f}", f"{at['tar']:.4f}")
        for one in facts.measured
        for kind, at in one.figures["thresholds"].items()
    ]
    if not rows:
        return "## Thresholds\n\nNot recorded: `facelit verify` and `facelit identify` need `--threshold`."
    return (
        "## Thresholds\n\nTwo faces count as the same person if the cosine similarity of their embeddings is at least the threshold. FAR"
        " and TAR were measured on all pairs of the set that the threshold was chosen on: on other pairs they will be somewhat worse.\n\n"
        + _table(("set", "threshold for", "threshold", "FAR", "TAR"), rows)
    )


def _use(facts: Facts) -> str:
    name = facts.checkpoint.name
    return f"""## How to use

```sh
facelit verify one.jpg other.jpg --checkpoint {name}
```

```python
import facelit

model = facelit.load("{name}")
print(model.verify("one.jpg", "other.jpg", aligned=False))
```

`facelit export face.onnx --checkpoint {name}` writes a file for other programs."""


def _limits(facts: Facts) -> str:
    threshold = "A threshold is only as good as the set it was measured on"
    drawn_sets = [one.name for one in facts.measured if _is_drawn(one.source)]
    points = [
        "Meant for research on face verification, and for comparing photos of people who have agreed to it. Face embeddings are"
        " biometric data: in many places the law requires consent or forbids their use.",
        "Not for decisions about people without human review: a score is evidence, not proof of identity.",
        "How error rates vary with age, sex, skin colour or origin has not been measured; for networks of this kind they are known to vary.",
        "Only for aligned crops of 112x112 pixels (`facelit align` makes them, by the five points of ArcFace's template). The figures"
        " above do not hold for other images.",
        f"{threshold}: other kinds of photos, cameras or people shift it. Measure on your own pairs.",
        "It cannot tell a live face from a photo of one.",
    ]
    if drawn_sets:
        names = ", ".join(map(_code, drawn_sets))
        points.append(f"The figures and thresholds of {names} were measured on drawings: they do not hold for photos.")
    return "## Intended use and limits\n\n" + "\n".join(f"- {point}" for point in points)


def _configuration(facts: Facts, configs: Sequence[str]) -> str:
    if facts.imported:
        return "## Configuration\n\nNone: the network was imported, not trained with facelit."
    if facts.config_text is None:
        return "## Configuration\n\nNot recorded: there is no `config.yaml` in the run's folder."
    links = ", ".join(f"[{_text(path.rpartition('/')[2])}]({quote(path)})" for path in configs) or "`config.yaml`"
    which = "the last of them in full" if len(configs) > 1 else "in full"
    return (
        f"## Configuration\n\n{links}; {which}:\n\n<details>\n<summary>All of the run's settings</summary>\n\n"
        f"```yaml\n{facts.config_text.rstrip()}\n```\n\n</details>"
    )


def _describe(configured: Configured | None) -> str:
    """Formats as `VGG16` (batch_norm: True, width: 0.125), without arguments that are None."""
    if configured is None:
        return _UNKNOWN
    arguments = ", ".join(f"{key}: {value}" for key, value in configured.init_args.items() if value is not None)
    return _code(configured.name) + (f" ({_text(arguments)})" if arguments else "")


def _is_drawn(configured: Configured | None) -> bool:
    return configured is not None and configured.class_path.startswith(_DRAWN)


def _far(target: float) -> str:
    """Formats 0.01 as 1e-2."""
    return f"1e{round(math.log10(target))}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def _code(text: Any) -> str:
    return "`" + " ".join(str(text).replace("`", "").split()) + "`"


def _text(text: str) -> str:
    """Text from a file, which must not end a line, or start a tag or a link."""
    return " ".join(text.split()).replace("<", "&lt;").replace("[", "\\[").replace("]", "\\]")
