"""Processes that look at different numbers of images measure the same as one that looks at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcmae.downstream.detection.data.dataset import Target
from fcmae.downstream.detection.detect import Detections
from fcmae.downstream.detection.metrics import AveragePrecision

PROCESS = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_shares import measure
rank, images = int(sys.argv[3]), int(sys.argv[4])
torch.distributed.init_process_group("gloo", f"file://{sys.argv[2]}/store", rank=rank, world_size=2)
Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(measure(range(images))))
torch.distributed.destroy_process_group()
"""


def measure(images: range) -> dict[str, float]:
    """Of images with one instance each: one is found, one missed, one half found."""
    metric = AveragePrecision(((1, "cell"),))
    for number in images:
        boxes = torch.tensor([[10.0, 10, 30, 30]])
        masks = torch.zeros(1, 40, 40, dtype=torch.uint8)
        masks[:, 10:30, 10:30] = 1
        labels = torch.ones(1, dtype=torch.int64)
        target = Target(boxes, labels, masks, torch.zeros(1, dtype=torch.bool), torch.tensor([400.0]))
        moved = (0, 20, 5)[number]
        found = Detections(
            boxes + moved, labels, torch.tensor([0.9 - 0.1 * number]), masks.roll(moved, 2).bool()
        )
        metric.add(found, target)
    return metric.compute()


@pytest.mark.slow
def test_shares_of_different_length_make_the_whole(tmp_path: Path) -> None:
    """The first process has all images, the second has none."""
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(tmp_path)]
    started = [subprocess.Popen([*command, *words]) for words in (("0", "3"), ("1", "0"))]
    try:
        assert [process.wait(timeout=200) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    whole = measure(range(3))
    assert 0 < whole["mask_ap"] < 1
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(whole)
