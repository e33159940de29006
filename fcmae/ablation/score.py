"""Accuracies of a pretrained encoder's frozen features: `python -m fcmae.ablation.score RUN METRIC...`."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from fcmae.ablation.runs import write_whole
from fcmae.config import PretrainConfig
from fcmae.config_io import from_dict
from fcmae.convert.files import read_newest_checkpoint
from fcmae.data import eval_transform, evaluation_batches, open_dataset
from fcmae.errors import InputError
from fcmae.evaluation.knn import embed_images, knn_accuracy
from fcmae.evaluation.probe import probe_accuracy
from fcmae.methods import MSN, from_config

SCORES = "scores.json"
METRICS = {"knn": knn_accuracy, "probe": probe_accuracy}


def score(run_dir: Path, metrics: Sequence[str]) -> dict[str, float]:
    """Accuracy on the labelled validation images of a run's data, by the labels of its training images.

    Args:
        run_dir: A finished pretraining run.
        metrics: Names in METRICS.
    Raises:
        InputError: there is no readable checkpoint, or its images have no labels.
    """
    config = from_dict(PretrainConfig, yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    found = read_newest_checkpoint(run_dir)
    if found is None:
        raise InputError(
            f"checkpoint: expected one in {run_dir}, got none. Delete the folder to run it anew."
        )
    method = from_config(config.model, config.data)
    method.load_state_dict(found[1]["model"])
    encoder = method.target_encoder if isinstance(method, MSN) else method.encoder
    on_gpu = torch.cuda.is_available() and config.run.accelerator != "cpu"
    encoder.to("cuda" if on_gpu else "cpu")
    embedded = []
    for split in ("val", "train"):
        dataset = open_dataset(
            dataclasses.replace(config.data, labels_per_class=None), split=split, labelled=True
        )
        batches = evaluation_batches(
            dataset, eval_transform(config.data), batch_size=64, workers=config.data.workers
        )
        embedded += embed_images(encoder, batches)
    return {name: METRICS[name](*embedded) for name in metrics}


def main(argv: Sequence[str]) -> int:
    """Score the run and write `<run>/scores.json`; a user's mistake is one line and exit code 2."""
    run_dir, metrics = Path(argv[0]), argv[1:]
    try:
        write_whole(run_dir / SCORES, json.dumps(score(run_dir, metrics)) + "\n")
    except InputError as error:
        print(f"fcmae: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
