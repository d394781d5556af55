"""How a written file is run, for comparing its embeddings with the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

Crops = npt.NDArray[np.uint8]
"""RGB, shape (N, 112, 112, 3)."""

Floats = npt.NDArray[np.float32]

Runner = Callable[[Tensor], Floats]
"""Maps images as `EmbeddingGraph.prepare` makes them, (N, ...), to embeddings, float32 (N, D)."""
