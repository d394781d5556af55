"""Where crops lie: folders of images, packed shards, RecordIO, pairs in a `.bin`. Plain numpy, no torch."""

from facelit.storage.base import CropStore, Labels
from facelit.storage.images import CROP_SIZE, BadImageError, Crop, decode_crop, is_image, list_images, read_crop

__all__ = [
    "CROP_SIZE",
    "BadImageError",
    "Crop",
    "CropStore",
    "Labels",
    "decode_crop",
    "is_image",
    "list_images",
    "read_crop",
]
