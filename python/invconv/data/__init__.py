"""Real images to train on: sets that pip installs, the field's files, folders and the hub."""

from invconv.data._built_in import BUILT_IN
from invconv.data._load import is_name, load, short_name
from invconv.data._types import (
    DataError,
    ImageData,
    Images,
    ImageSet,
    Indices,
    Labels,
    LazyImages,
    UserError,
)

__all__ = [
    "BUILT_IN",
    "DataError",
    "ImageData",
    "ImageSet",
    "Images",
    "Indices",
    "Labels",
    "LazyImages",
    "UserError",
    "is_name",
    "load",
    "short_name",
]
