"""The built-in images: scikit-learn's scans of handwritten digits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcmae.data.dataset import ImageDataset


class DigitsDataset(ImageDataset[Tensor]):
    """scikit-learn's 1797 scans of handwritten digits: 8x8, enlarged bicubically, grey in every channel."""

    def __init__(self, size: tuple[int, int], *, in_chans: int, labelled: bool) -> None:
        # Here, as no other source needs scikit-learn, and the methods import this module.
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        self._scans = torch.from_numpy(pixels).to(torch.float32).view(-1, 1, 8, 8) / 16
        self._size = size
        self._in_chans = in_chans
        if labelled:
            self.labels = digits.tolist()
            self.classes = tuple(str(digit) for digit in range(10))

    def __len__(self) -> int:
        return len(self._scans)

    def name_of(self, index: int) -> str:
        return f"digits[{index}]"

    def load(self, index: int) -> Tensor:
        scan = self._scans[index : index + 1]
        enlarged = F.interpolate(scan, size=self._size, mode="bicubic", align_corners=False, antialias=True)
        return enlarged[0].clamp_(0, 1).repeat(self._in_chans, 1, 1)
