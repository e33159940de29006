"""Accuracies of a pretrained encoder's frozen features: `python -m fcmae.ablation.score RUN METRIC...`."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from fcmae.ablation.runs import write_whole
from fcmae.config import EvaluateConfig, LowShotConfig, PretrainConfig
from fcmae.config_io import from_dict
from fcmae.errors import InputError
from fcmae.protocols.evaluate import evaluate

SCORES = "scores.json"
METRICS = {
    "knn": "k-NN",
    "probe": "probe",
    "lowshot_1": "1 a class",
    "lowshot_2": "2 a class",
    "lowshot_5": "5 a class",
    "lowshot_1percent": "1 %",
}
"""Metric -> its column in the table of `fcmae evaluate`, whose default settings it has."""


def score(run_dir: Path, metrics: Sequence[str]) -> dict[str, float]:
    """Accuracy on the labelled validation images of a run's data, by the labels of its training images.

    Args:
        run_dir: A finished pretraining run.
        metrics: Names in METRICS.
    Raises:
        InputError: there is no readable checkpoint, or its images have no labels.
    """
    config = from_dict(PretrainConfig, yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    few = [name for name in metrics if name.startswith("lowshot")]
    table = evaluate(
        EvaluateConfig(
            protocols=",".join(dict.fromkeys("lowshot" if name in few else name for name in metrics)),
            data=dataclasses.replace(config.data, labels_per_class=None),
            lowshot=LowShotConfig(
                per_class=tuple(count for count in (1, 2, 5) if f"lowshot_{count}" in few),
                percent=1.0 if "lowshot_1percent" in few else None,
            ),
            cache=str(run_dir / "features"),
            device="cpu" if config.run.accelerator == "cpu" else "auto",
            num_heads=getattr(config.model, "num_heads", None),
        ),
        [str(run_dir)],
    )
    found = {cell.protocol: cell.accuracy for cell in table.cells}
    return {name: found[METRICS[name]] for name in metrics}


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
