"""What is trained, as a table at the start of a run."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import ModelSummary
from pytorch_lightning.utilities.model_summary import get_human_readable_count
from rich import get_console
from rich.table import Table


class ModelTable(ModelSummary):
    """Lightning's summary of the model's parts, without columns that are always empty (FLOPs) or always the same (mode)."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Prints the table, and the totals in one line."""
        columns = dict(summary_data)
        table = Table()
        for name in ("Name", "Type", "Params"):
            table.add_column(name, justify="right" if name == "Params" else "left", no_wrap=name == "Name")
        for row in zip(columns["Name"], columns["Type"], columns["Params"], strict=True):
            table.add_row(*row)
        trained, total = (
            get_human_readable_count(number).strip() for number in (trainable_parameters, total_parameters)
        )
        get_console().print(table)
        get_console().print(f"{total} parameters, {trained} of them trained; {model_size:,.1f} MB")
