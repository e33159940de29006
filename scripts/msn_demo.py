"""What MSN learns on scanned digits, by k-NN, and how it collapses without what keeps it from that.

python scripts/msn_demo.py [ARM ...] [--train.steps=N ...]

Options beside the arms' names override every arm's configuration. It starts anew every time: the folders it
made in an earlier run are deleted first.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fcmae.config import DataConfig, PretrainConfig
from fcmae.config_io import load_config
from fcmae.convert.files import read_newest_checkpoint
from fcmae.data import eval_transform, evaluation_batches, open_dataset
from fcmae.errors import InputError
from fcmae.evaluation.knn import embed_images, knn_accuracy
from fcmae.methods import MSN, from_config
from fcmae.models import Encoder
from fcmae.report.samples import read_events
from fcmae.training.pretrain import pretrain
from fcmae.training.seeding import seed_draws

CONFIGS = Path(__file__).parents[1] / "configs" / "msn"
COLLAPSE = (
    "--model.me_max_weight=0",
    "--model.sinkhorn_iterations=0",
    "--model.share_view=true",
    "--model.anchors=1",
)
ARMS: dict[str, tuple[str, ...]] = {
    "convnextv2": ("convnextv2_digits.yaml",),
    "vit": ("vit_digits.yaml",),
    "convnextv2_collapse": ("convnextv2_digits.yaml", *COLLAPSE),
    "vit_collapse": ("vit_digits.yaml", *COLLAPSE),
}


def main(argv: Sequence[str]) -> int:
    """Run the arms that are named, or all, and print a line for each."""
    torch.set_num_threads(1)
    names = [word for word in argv if not word.startswith("--")] or list(ARMS)
    options = [word for word in argv if word.startswith("--")]
    if unknown := [name for name in names if name not in ARMS]:
        print(f"msn_demo: expected {', '.join(ARMS)}, got {unknown[0]}.", file=sys.stderr)
        return 2
    try:
        lines = [_run(name, options) for name in names]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(*lines, sep="\n")
    return 0


def _run(name: str, options: Sequence[str]) -> str:
    file, *changes = ARMS[name]
    run_dir = f"runs/msn_demo/{name}"
    argv = ["--config", str(CONFIGS / file), f"--run.dir={run_dir}", "--run.accelerator=cpu"]
    config = load_config(PretrainConfig, [*argv, *changes, *options])
    shutil.rmtree(config.run.dir, ignore_errors=True)
    seed_draws(config.train.seed)  # as the run does: the same random weights
    method = from_config(config.model, config.data)
    assert isinstance(method, MSN)
    before = _accuracy(method.target_encoder, config.data)
    run = pretrain(config)
    checkpoint = read_newest_checkpoint(run)
    assert checkpoint is not None
    method.load_state_dict(checkpoint[1]["model"])
    after = _accuracy(method.target_encoder, config.data)
    last = read_events(run, "train")[-1]
    collapses = [f"{event['of']} at step {event['step']}" for event in read_events(run, "collapse")]
    return (
        f"{name}: k-NN {100 * before:.1f} % with random weights, {100 * after:.1f} % after {last['step']} "
        f"steps; {last['prototypes_in_use']:.0f} prototypes in use, mean entropy {last['mean_entropy']:.2f}; "
        f"collapse: {', '.join(collapses) or 'none'}"
    )


def _accuracy(encoder: Encoder, data: DataConfig) -> float:
    """Of the held-out tenth of the digits, whose neighbours are among the others."""
    sets = []
    for split in ("val", "train"):
        dataset = open_dataset(data, split=split, labelled=True)
        batches = evaluation_batches(dataset, eval_transform(data), batch_size=128, workers=0)
        sets += embed_images(encoder, batches)
    return knn_accuracy(*sets)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
