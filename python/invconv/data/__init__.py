"""Real images to train on: two sets that pip installs, and folders of image files."""

from invconv.data._load import BUILT_IN, DataError, ImageData, Images, Labels, UserError, load

__all__ = ["BUILT_IN", "DataError", "ImageData", "Images", "Labels", "UserError", "load"]
