"""What inference and verification do without. In one process, in which nothing else imports it: torch alone takes seconds."""

import subprocess
import sys

from tiny_run import ROOT
from trained_run import trained_run

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])

def imported(*names):
    return {*names} & {*sys.modules}

import facelit
assert not imported("torch")

model = facelit.load(sys.argv[2])
model.verify(sys.argv[3], sys.argv[3], threshold=0.5)
assert not imported("pytorch_lightning", "matplotlib", "sklearn", "faiss", "cv2", "onnxruntime")

import numpy as np
import facelit.inference.figures
import facelit.verification
from facelit.verification.figures import roc_figure
roc_figure({"a": facelit.verification.evaluate_pairs(np.arange(20.0), np.arange(20) % 2 == 0, 2)})
# torchmetrics takes longer than torch; pyplot, which torchmetrics imports, keeps every figure alive: a long run would leak.
assert not imported("torchmetrics", "matplotlib.pyplot", "pytorch_lightning")

facelit.verification.PairVerification
assert imported("torchmetrics", "pytorch_lightning") == {"torchmetrics"}
"""


def test_what_inference_and_verification_do_not_import() -> None:
    trained = trained_run()
    arguments = [ROOT, trained.checkpoint, trained.crop(0, 1)]
    subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], check=True)
