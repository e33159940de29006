"""Feature diversity: the images, and the features that are looked at."""

import re
from dataclasses import dataclass, field

from fcmae.config.checks import require
from fcmae.config.data import DataConfig

EXPANSION = r"(.*\.)?mlp\.fc2"
"""Modules whose input is an expansion MLP's 4C features: in ConvNeXt (V1, V2), ViT, ConvMAE and Swin."""


@dataclass(frozen=True, kw_only=True)
class DiversityConfig:
    """Diversity of the features of one or several networks, layer by layer."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    images: int = 1000
    """Validation images, at even distances in their sorted list, so of all classes (the paper: 1000)."""
    modules: str = EXPANSION
    """Regular expression of module names; what each of them reads is measured. The default: what the second
    layer of an MLP reads, after GRN where there is one. `(.*\\.)?mlp\\.grn`: before GRN."""
    selectivity: bool = False
    """Measure how much single channels tell classes apart, too; the images need classes."""
    batch_size: int = 8
    """Images at once; changes the memory, not the numbers."""
    device: str = "auto"
    """PyTorch's name of the device; `auto`: CUDA where there is one."""
    num_heads: int | None = None
    """Attention heads, where weights of own sizes do not tell theirs."""
    out: str = "runs/diversity"
    """Folder of report.html and diversity.json."""

    def __post_init__(self) -> None:
        require(self.images >= 1, f"images: expected at least 1, got {self.images}.")
        require(self.batch_size >= 1, f"batch_size: expected at least 1, got {self.batch_size}.")
        try:
            re.compile(self.modules)
        except re.error as error:
            require(False, f"modules: expected a regular expression, got {self.modules!r}: {error}.")
