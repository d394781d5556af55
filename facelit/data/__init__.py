"""Files to batches: training sets, verification sets, samplers, augmentation, and the module that joins them."""

from facelit.data.augmentation import Augmentation
from facelit.data.batches import EvalBatch, TrainBatch
from facelit.data.datamodule import FaceDataModule
from facelit.data.identity_folder import IdentityFolder
from facelit.data.identity_pairs import IdentityPairs
from facelit.data.pairs import PairsFolder, read_pairs
from facelit.data.pairs_bin import PairsBin
from facelit.data.pairs_cfp import PairsCFP
from facelit.data.samplers import IdentityBalancedSampler, RandomTripletSampler, ShuffleSampler
from facelit.data.sources import IdentitySource, VerificationSource
from facelit.data.synthetic import SyntheticFaces, SyntheticPairs, write_identity_tree, write_lfw_tree

__all__ = [
    "Augmentation",
    "EvalBatch",
    "FaceDataModule",
    "IdentityBalancedSampler",
    "IdentityFolder",
    "IdentityPairs",
    "IdentitySource",
    "PairsBin",
    "PairsCFP",
    "PairsFolder",
    "RandomTripletSampler",
    "ShuffleSampler",
    "SyntheticFaces",
    "SyntheticPairs",
    "TrainBatch",
    "VerificationSource",
    "read_pairs",
    "write_identity_tree",
    "write_lfw_tree",
]
