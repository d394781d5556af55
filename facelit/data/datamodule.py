"""FaceDataModule: identities to train on, pairs to verify on, photos to embed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from facelit.data.augmentation import Augmentation, normalize
from facelit.data.batches import EvalBatch, EvalImages, TrainBatch, TrainImages
from facelit.data.gpu_decoding import GpuDecoder
from facelit.data.reading import CropReader, EncodedCrops, OnBadImage
from facelit.data.resuming import TrainLoader, begin_at_epoch, fingerprint
from facelit.data.samplers import BatchPlan, EpochSampler, ShuffleSampler
from facelit.data.sources import IdentitySource, VerificationSource
from facelit.data.worker_signals import leave_signals_to_main
from facelit.data.workers import Load, check_open_files, check_shared_memory
from facelit.errors import FacelitError
from facelit.storage.images import list_images
from facelit.storage.open import why_no_files
from facelit.storage.progress import progress_bar

NO_TRAINING_SET = (
    "no training set: name one with --data.train IdentityFolder --data.train.root FOLDER, or try the built-in faces with"
    " --config configs/demo.yaml"
)


class FaceDataModule(LightningDataModule):
    """Everything between files and batches.

    Training batches are `TrainBatch`, verification and prediction batches `EvalBatch`; on the device their images are
    float32 in [-1, 1], shape (N, 3, 112, 112). Verification and prediction images are never augmented.

    Args:
        train: The training set; needed by `fit` only.
        verification: Verification sets by the name under which their figures are logged. The first one's accuracy is
            also logged as `val/accuracy`, which checkpoints are chosen by. The sets of a later `--config` are added to those of earlier
            ones; None removes one.
        predict: Folder of aligned crops (any tree) whose embeddings `predict` writes.
        predict_resize: Resize those of another size than 112x112 instead of refusing them.
        batch_size: Training images per process and batch; a `sampler` sets its own.
        eval_batch_size: Images per process and batch in verification and prediction.
        sampler: How training batches are made up; by default each image once per epoch in random order.
        augmentation: Random changes to training crops; by default a horizontal flip of every second one.
        num_workers: Processes that read images; 0 reads them in the main process.
        worker_timeout: Seconds after which a run stops that has waited for a batch all that time; 0 waits for ever.
        on_bad_image: What to do with a training image that cannot be read: "error" stops and names it; "skip" takes another
            image of the same identity instead, and lists it in `bad-images.tsv` beside the checkpoints. Verification
            images that cannot be read are always errors.
        max_bad_share: With "skip": the share of the training set past which the run stops all the same.
        decode_on_gpu: Decode JPEGs on the GPU (nvJPEG, through TorchCodec or torchvision) instead of in the workers.
        seed: Order and augmentation are functions of it and the epoch alone. The command line sets it from
            `seed_everything`.
    """

    def __init__(
        self,
        train: IdentitySource | None = None,
        verification: dict[str, VerificationSource | None] | None = None,
        predict: str | None = None,
        predict_resize: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        sampler: BatchPlan | None = None,
        augmentation: Augmentation | None = None,
        num_workers: int = 4,
        worker_timeout: float = 1800,
        on_bad_image: OnBadImage = "error",
        max_bad_share: float = 0.01,
        decode_on_gpu: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_options(eval_batch_size, num_workers, worker_timeout, on_bad_image, max_bad_share)
        sets = {name: source for name, source in (verification or {}).items() if source is not None}
        _check_names(sets)
        self.train = train
        self.verification: Mapping[str, VerificationSource] = sets
        self.predict = predict
        self.predict_resize = predict_resize
        self.plan = sampler or ShuffleSampler(batch_size)
        self.eval_batch_size = eval_batch_size
        self.augmentation = augmentation or Augmentation()
        self.num_workers = num_workers
        self.worker_timeout = worker_timeout
        self.on_bad_image = on_bad_image
        self.max_bad_share = max_bad_share
        self.decode_on_gpu = decode_on_gpu
        self.seed = seed
        self._decoder: GpuDecoder | None = None

    @property
    def num_identities(self) -> int | None:
        """Identities of the training set, None without one: the command line sizes the head by it."""
        return None if self.train is None else self.train.num_identities

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of one process in an epoch."""
        return self.plan.num_batches(self._training_set().labels, self._world_size)

    def setup(self, stage: str) -> None:
        """Prepares the sources of a stage, and says what they hold."""
        if stage == "fit":
            train = self._training_set()
            self._check_validation_interval()
            self._prepare_decoding()
            train.prepare()
            self._compare_over_processes(train)
            rank_zero_info(f"Training on {len(train):,} images of {train.num_identities:,} identities.")
        if stage in ("fit", "validate", "test"):
            if stage != "fit" and not self.verification:
                raise FacelitError(f"nothing to {stage} on: data.verification names no verification set.")
            for name, source in self.verification.items():
                source.prepare()
                missing = f", {source.num_missing_pairs:,} left out (absent images)" if source.num_missing_pairs else ""
                rank_zero_info(
                    f"Verifying on {name}: {len(source.is_same):,} pairs of {len(source):,} images{missing}."
                )
                if stage == "fit":
                    self._read_once(name, source)
        if stage == "predict":
            self.predict_paths()
        self._check_workers(stage)

    def predict_paths(self) -> list[Path]:
        """Sorted paths of the images that `predict` embeds."""
        if self.predict is None:
            raise FacelitError("nothing to predict on: name a folder of aligned crops with --data.predict FOLDER")
        root = Path(self.predict)
        paths = list_images(root)
        if not paths:
            state = "holds no image (.jpg, .png, .webp, ...)" if root.is_dir() else "does not exist"
            raise FacelitError(f"{root} {state} (option data.predict). {why_no_files(root)}".rstrip())
        return paths

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Whole batches; resumed runs continue after the batch they stopped at."""
        source = self._training_set()
        self._refuse_overfit_batches()
        sampler = EpochSampler(self.plan, source.labels, self._world_size, self._rank, self.seed)
        if self.trainer is not None:
            begin_at_epoch(sampler, self.trainer)
        images = TrainImages(self.reader(), self.seed, self.decode_on_gpu)
        loader = TrainLoader(images, sampler=sampler, **self._loader_options(batch_size=None))
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> list[DataLoader[EvalBatch]]:
        """One loader for each verification set, in their order."""
        return [self._eval_loader(EvalImages(source)) for source in self.verification.values()]

    def test_dataloader(self) -> list[DataLoader[EvalBatch]]:
        """The verification sets again: LFW is its own test."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[EvalBatch]:
        """The crops below `predict`."""
        return self._eval_loader(EvalImages(self.predict_paths(), self.predict_resize))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """On the device: uint8 to [-1, 1], and the augmentation of training crops."""
        if isinstance(batch, TrainBatch):
            if isinstance(batch.images, EncodedCrops):
                assert self._decoder is not None
                batch = self._decoder.decode(batch, batch.images)
            assert isinstance(batch.images, Tensor)
            return batch._replace(images=self.augmentation(normalize(batch.images), batch.draws.view(torch.float32)))
        if isinstance(batch, EvalBatch):
            return batch._replace(images=normalize(batch.images))
        return batch

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def reader(self) -> CropReader:
        """Reads the crops of the training set, by number."""
        return CropReader(self._training_set(), self.on_bad_image)

    def _training_set(self) -> IdentitySource:
        if self.train is None:
            raise FacelitError(NO_TRAINING_SET)
        return self.train

    def _check_validation_interval(self) -> None:
        """Lightning finds the first two out with a traceback; the others would lose micro-batches on a resume."""
        if self.trainer is None or not self.verification or not self.trainer.limit_val_batches:
            return
        # Where the interval is a time, the trainer does not have it under this name.
        trainer, interval = self.trainer, getattr(self.trainer, "val_check_interval", None)
        batches, accumulated = training_batches(trainer, self.batches_per_epoch), trainer.accumulate_grad_batches
        if not batches:
            return
        by_epoch = trainer.check_val_every_n_epoch is not None
        self._refuse_parts_of_sets(trainer)
        if isinstance(interval, int) and interval < 1:
            raise FacelitError(f"trainer.val_check_interval must be at least 1 batch, got {interval}.")
        if isinstance(interval, int) and interval > batches and by_epoch:
            raise FacelitError(
                f"trainer.val_check_interval {interval} is more than the {batches} batches of an epoch. Lower"
                " it, or count over epochs with --trainer.check_val_every_n_epoch null"
            )
        if isinstance(interval, float):
            interval = max(1, int(interval * batches))
        whole_steps = interval is not None and interval % accumulated == 0 and (by_epoch or batches % accumulated == 0)
        # The last batch of an epoch ends a step, however many came before it.
        if accumulated > 1 and not whole_steps and not (by_epoch and interval == batches):
            raise FacelitError(
                f"trainer.val_check_interval {'by time' if interval is None else f'of {interval} batches'} would validate between two optimizer steps, each of which"
                f" takes trainer.accumulate_grad_batches {accumulated} batches, and a checkpoint from there cannot be resumed"
                f" exactly. Validate after epochs, or after a multiple of {accumulated} batches"
                f"{'' if by_epoch else f' where an epoch ({batches}) is one too'}."
            )

    def _refuse_parts_of_sets(self, trainer: Trainer) -> None:
        """Before an epoch has been trained for figures that would be refused."""
        limit = trainer.limit_val_batches
        if trainer.fast_dev_run or trainer.overfit_batches or (limit == 1.0 and isinstance(limit, float)):
            return
        for name, source in self.verification.items():
            batches = -(-len(source) // (self.eval_batch_size * self._world_size))
            if isinstance(limit, float) or limit < batches:
                raise FacelitError(
                    f"trainer.limit_val_batches {limit}: verification set {name} has {batches} batches, and figures of part of a set would"
                    " be meaningless. Leave the option out; to train without verification: --data.verification null"
                )

    def _check_workers(self, stage: str) -> None:
        """Training's workers stay ahead while one verification set after the other is read."""
        training = []
        if stage == "fit":
            source, batches = self._training_set(), self.batches_per_epoch
            size = getattr(self.plan, "batch_size", -(-len(source) // (batches * self._world_size)))
            option = "data.batch_size" if isinstance(self.plan, ShuffleSampler) else "training batches of"
            training.append(Load(option, size, batches))
        counts = [len(self.predict_paths())] if stage == "predict" else [len(one) for one in self.verification.values()]
        others = []
        if counts:
            size = min(self.eval_batch_size, max(counts))
            others.append(Load("data.eval_batch_size", size, -(-max(counts) // (size * self._world_size))))
        local = self.trainer.num_devices if self.trainer else 1
        # Crops that a GPU decodes are still JPEGs here, and small.
        in_memory = others if self.decode_on_gpu else training + others
        check_shared_memory(in_memory, self.num_workers, max(1, min(self._world_size, local)))
        check_open_files(training + others, self.num_workers, idle=max(0, len(counts) - 1))

    def _compare_over_processes(self, train: IdentitySource) -> None:
        """A folder that changed while the processes of a run listed it one after the other: their numbers mean other images."""
        if self.trainer is None or self._world_size == 1:
            return
        own = fingerprint(train)
        if self.trainer.strategy.broadcast(own) != own:
            raise FacelitError(
                "the processes of this run see different training sets (data.train): has it changed while they started, or is it"
                " another one on another machine?"
            )

    def _read_once(self, name: str, source: VerificationSource) -> None:
        """Finds a broken verification image now, and not when hours of training are to be measured."""
        numbers = range(self._rank, len(source), self._world_size)
        with progress_bar(f"Reading {name}", len(numbers), quiet_below=20_000) as show:
            for done, number in enumerate(numbers):
                source.image(number)
                show(done)

    def _prepare_decoding(self) -> None:
        if not self.decode_on_gpu:
            return
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type != "cuda":
            raise FacelitError(
                f"data.decode_on_gpu needs an NVIDIA GPU, and this run is on the {device.type}. Turn the option off."
            )
        self._decoder = GpuDecoder(self.reader(), device)
        rank_zero_info(f"Decoding JPEGs on the GPU with {self._decoder.name}.")

    def _refuse_overfit_batches(self) -> None:
        if self.trainer and self.trainer.overfit_batches:
            raise FacelitError(
                "trainer.overfit_batches replaces the sampler of batches; use --trainer.limit_train_batches, or a small"
                " training set, instead."
            )

    def _eval_loader(self, dataset: EvalImages) -> DataLoader[EvalBatch]:
        # Padding to equal lengths repeats images on the last batches: processes stay in step, the table of embeddings
        # holds each image once all the same.
        sampler: DistributedSampler[EvalBatch] | None = None
        if self._world_size > 1:
            sampler = DistributedSampler(dataset, self._world_size, self._rank, shuffle=False)
        options = self._loader_options(batch_size=self.eval_batch_size)
        return DataLoader(dataset, sampler=sampler, collate_fn=_collate, **options)

    def _loader_options(self, batch_size: int | None) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "timeout": self.worker_timeout if self.num_workers else 0,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": leave_signals_to_main,
            # Its own generator: making an iterator must not advance the one that dropout draws from.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def training_batches(trainer: Trainer, batches: int) -> int:
    """How many of an epoch's batches are trained on: `trainer.limit_train_batches` may leave some out."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _check_names(names: Iterable[str]) -> None:
    """They begin the names of logged figures and of files."""
    for name in names:
        if not name or name in ("train", "val") or "/" in name or "\\" in name:
            raise FacelitError(
                f"data.verification: a set cannot be called {name!r}: files and figures are named after it, and train/... and"
                " val/... are taken."
            )


def _check_options(
    eval_batch_size: int, num_workers: int, worker_timeout: float, on_bad_image: str, max_bad_share: float
) -> None:
    if eval_batch_size < 1:
        raise FacelitError(f"data.eval_batch_size must be at least 1, got {eval_batch_size}.")
    if num_workers < 0:
        raise FacelitError(f"data.num_workers must be at least 0 (0 reads in the main process), got {num_workers}.")
    if worker_timeout < 0:
        raise FacelitError(
            f"data.worker_timeout must be at least 0 seconds (0 waits for ever), got {worker_timeout:g}."
        )
    if on_bad_image not in get_args(OnBadImage):
        raise FacelitError(f"data.on_bad_image must be one of {', '.join(get_args(OnBadImage))}, got {on_bad_image}.")
    if not 0 <= max_bad_share <= 1:
        raise FacelitError(f"data.max_bad_share must be from 0 to 1 (a share of the set), got {max_bad_share}.")


def _collate(samples: list[EvalBatch]) -> EvalBatch:
    images: list[Tensor] = [sample.images for sample in samples]
    return EvalBatch(
        torch.stack(images).contiguous(memory_format=torch.channels_last),
        torch.stack([sample.numbers for sample in samples]),
        [bad for sample in samples for bad in sample.bad],
    )
