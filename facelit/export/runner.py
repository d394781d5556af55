"""What a written file is opened as, to see whether it gives what the checkpoint gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

Crops = npt.NDArray[np.uint8]
"""RGB, shape (N, 112, 112, 3)."""

Floats = npt.NDArray[np.float32]

Runner = Callable[[Tensor], Floats]
"""Images as `EmbeddingGraph.prepare` makes them, (N, ...), to embeddings, float32 (N, D)."""
