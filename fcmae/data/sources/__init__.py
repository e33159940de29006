"""Where images come from: folders, shards, arrays and built-in scans, opened as the configuration says."""

from fcmae.data.sources.arrays import ArrayDataset
from fcmae.data.sources.digits import DigitsDataset
from fcmae.data.sources.folders import FolderDataset
from fcmae.data.sources.opening import open_dataset
from fcmae.data.sources.shards import ShardDataset

__all__ = ["ArrayDataset", "DigitsDataset", "FolderDataset", "ShardDataset", "open_dataset"]
