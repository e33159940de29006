"""The page of `make demo`: does pretraining without labels help, and what does it cost?"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import Any

from torch import Tensor

from fcmae.config import FCMAEConfig, FinetuneConfig, PretrainConfig
from fcmae.report import page, plots
from fcmae.report.comparison import compare, spread
from fcmae.report.page import Column, Html

_TIMES = "\N{MULTIPLICATION SIGN}"
_PACKAGES = ("fcmae", "torch", "timm", "lightning", "torchvision", "numpy", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All that the page tells; the page itself decides nothing but the words."""

    pretrain: PretrainConfig
    finetune: FinetuneConfig
    """As fine-tuned from pretrained weights; the other arm differs in `model.weights` only."""
    images: int
    """Scans pretrained on."""
    held_out: int
    """Scans of the accuracies; never seen in either training."""
    seeds: Sequence[int]
    pretrained: Sequence[float]
    """Accuracy of each seed from pretrained weights, in [0, 1], after the last step."""
    random: Sequence[float]
    """The same from random weights."""
    log: Sequence[dict[str, Any]]
    """`train` events of the pretraining run."""
    pictures: Sequence[tuple[str, Tensor]]
    """Labelled rows of held-out scans, uint8 [B, H, W, 3]."""
    difference: tuple[float, float]
    """Largest difference of a feature, sparse encoder against dense model: absolute, and as a share."""
    bench: dict[str, Any]
    """What `fcmae bench step --json` wrote, the sparse arm first, masked dense second."""
    seconds: dict[str, float]
    """Wall-clock time of each stage, in order."""
    configs: dict[str, str]
    """The configurations that ran, as YAML, by title."""


def write_demo_page(path: Path, result: DemoResult) -> None:
    """Write the page of a demo run to `path`."""
    comparison = compare(result.pretrained, result.random)
    tone = {"win": "good", "lose": "bad", "tie": "plain"}[comparison.outcome]
    machine = result.bench["machine"]
    page.write_page(
        path,
        title="Sparse FCMAE pretraining on scanned digits",
        subtitle=(
            f"ConvNeXt V2 ({result.pretrain.model.backbone}), pretrained on {result.images:,} scans without "
            f"their labels, fine-tuned on {_labels(result)}. {machine['cores']} cores, "
            f"{machine['processor']}."
        ),
        blocks=[
            page.notice(comparison.text, tone=tone),
            _tiles(result),
            _accuracy(result),
            _pretraining(result),
            _conversion(result),
            _cost(result),
            _provenance(result),
        ],
    )


def _labels(result: DemoResult) -> str:
    return f"{result.finetune.data.labels_per_class} labelled scans a class"


def _tiles(result: DemoResult) -> Html:
    count = len(result.seeds)
    arms = [
        (name, f"{100 * mean(values):.1f} %", f"accuracy, ± {100 * spread(values):.1f} between {count} seeds")
        for name, values in (("From pretrained", result.pretrained), ("From random", result.random))
    ]
    total = sum(result.seconds.values())
    time, memory = _ratios(result.bench)
    return page.tiles(
        [
            *arms,
            (
                "Sparse step",
                f"{time:.2f} {_TIMES}",
                f"the masked-dense time, {memory:.2f} {_TIMES} its memory",
            ),
            ("This demo", _minutes(total), "set-up aside"),
        ]
    )


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _accuracy(result: DemoResult) -> Html:
    first = plots.Arm(name="from pretrained", values=result.pretrained)
    second = plots.Arm(name="from random", values=result.random)
    rows: list[list[page.Cell]] = [
        [str(seed), 100 * a, 100 * b, 100 * (a - b)]
        for seed, a, b in zip(result.seeds, result.pretrained, result.random, strict=True)
    ]
    differences = [a - b for a, b in zip(result.pretrained, result.random, strict=True)]
    summaries = (result.pretrained, result.random, differences)
    rows.append(["mean", *(100 * mean(values) for values in summaries)])
    rows.append(["std", *(100 * spread(values) for values in summaries)])
    train = result.finetune.train
    return page.section(
        "Accuracy with few labels",
        page.paragraph(
            f"Both arms fine-tune the same dense timm model under the same budget: {_labels(result)} (the "
            f"same ones), {train.steps} steps of {train.batch_size} images, the same learning rate, schedule "
            "and augmentation, the same initial weights of the head (scale "
            f"{result.finetune.model.head_init_scale:g}, which random weights need: the paper's 0.001 would "
            "hold that arm back), and the same seeds. Only the encoder starts from other weights. The "
            f"accuracy is that after the last step, on {result.held_out} scans that neither pretraining nor "
            "fine-tuning saw; no step was picked by it."
        ),
        page.paragraph(
            "Read it with care: pretraining's own time is outside the budget; the recipe, its length "
            "included, was settled with these scans in sight; for one twice as long see "
            "the head of configs/fcmae/convnextv2_atto_demo_finetune.yaml."
        ),
        page.columns(
            page.figure(
                plots.paired_accuracies(first, second),
                alt=(
                    f"Accuracy by arm. From pretrained weights {100 * mean(result.pretrained):.1f} % on "
                    f"average, from random weights {100 * mean(result.random):.1f} %."
                ),
                caption="A dot is a seed, a bar the mean of an arm; lines join the same seed.",
            ),
            page.table(
                [
                    Column(title="seed"),
                    Column(title="pretrained", format=".1f"),
                    Column(title="random", format=".1f"),
                    Column(title="difference", format="+.1f"),
                ],
                rows,
                caption="Accuracy on held-out scans, %, and differences in percentage points",
            ),
        ),
    )


def _pretraining(result: DemoResult) -> Html:
    train, model = result.pretrain.train, result.pretrain.model
    assert isinstance(model, FCMAEConfig)  # the demo's method
    speed = median(entry["images_per_second"] for entry in result.log)
    steps, losses = [entry["step"] for entry in result.log], [entry["loss"] for entry in result.log]
    height, width = result.pretrain.data.size
    batch = train.batch_size * train.accumulate
    rows: list[list[page.Cell]] = [
        ["images", f"{result.images:,} of {height} {_TIMES} {width} px"],
        [f"steps {_TIMES} batch", f"{train.steps} {_TIMES} {batch}"],
        ["passes over the images", f"{train.steps * batch / result.images:.1f}"],
        ["hidden", f"{model.mask_ratio:.0%} of the {model.patch_size} px patches"],
        ["execution", model.execution],
        ["images per second", f"{speed:.0f} (median)"],
        ["loss, first and last", f"{losses[0]:.3f} → {losses[-1]:.3f}"],
    ]
    return page.section(
        "Pretraining without labels",
        page.columns(
            page.figure(
                plots.loss_curve(steps, losses),
                alt=f"Training loss: {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps[-1]} steps.",
                caption="Mean squared error of the masked patches, each normalised by its own mean and "
                "deviation. Pale: as logged; strong: smoothed over a twentieth of the curve.",
            ),
            page.table([Column(title="what"), Column(title="value")], rows, caption="The pretraining run"),
        ),
        page.gallery(
            result.pictures,
            names=[f"scan {index + 1}" for index in range(len(result.pictures[0][1]))],
            caption="Held-out scans. From top to bottom: original; what the encoder sees; visible patches "
            "with the masked ones predicted. A prediction is a normalised patch, so its brightness and "
            "contrast are taken from the original, and an empty patch is always right; judge the strokes.",
        ),
    )


def _conversion(result: DemoResult) -> Html:
    absolute, relative = result.difference
    return page.section(
        "From sparse to dense",
        page.paragraph(
            "The pretrained encoder was converted to the weights of a dense timm model, and both were run "
            "on the same images before anything was written. Largest difference of a feature: "
            f"{absolute:.1e}, or {relative:.1e} of its stage's root mean square (all patches visible "
            "against timm; mask ratio 0.6, sparse against masked dense)."
        ),
    )


def _ratios(bench: dict[str, Any]) -> tuple[float, float]:
    """Sparse over masked dense: time, step by step, and memory above the weights'."""
    sparse, dense = bench["results"]
    pairs = zip(sparse["seconds"], dense["seconds"], strict=True)
    memory = sparse["peak_bytes_above_weights"] / dense["peak_bytes_above_weights"]
    return median(a / b for a, b in pairs), memory


def _cost(result: DemoResult) -> Html:
    time, memory = _ratios(result.bench)
    sparse = result.bench["results"][0]
    rows: list[list[page.Cell]] = [
        [
            arm["arm"].replace("_", " "),
            1000 * arm["median_seconds"],
            1000 * arm["min_seconds"],
            arm["images_per_second"],
            arm["peak_bytes_above_weights"] / 2**20,
        ]
        for arm in result.bench["results"]
    ]
    return page.section(
        "Speed and memory",
        page.paragraph(
            f"Forward and backward of the pretraining step, {sparse['batch_size']} images of "
            f"{sparse['image_size']} px at mask ratio {sparse['mask_ratio']:g}, {sparse['precision']}. "
            "Masked dense computes the same numbers over all sites, the fastest way plain PyTorch offers. "
            "Each arm runs in a process of its own, step by step in turn."
        ),
        page.columns(
            page.figure(
                plots.shares(["time", "memory"], [time, memory]),
                alt=f"The sparse step takes {time:.0%} of masked dense's time, {memory:.0%} of its memory.",
                caption=f"The sparse step's share of masked dense: median over {len(sparse['seconds'])} "
                "pairs of steps, and peak memory above the weights'.",
            ),
            page.table(
                [
                    Column(title="execution"),
                    Column(title="median, ms", format=",.0f"),
                    Column(title="fastest, ms", format=",.0f"),
                    Column(title="images/s", format=".1f"),
                    Column(title="memory, MiB", format=",.0f"),
                ],
                rows,
                caption="One pretraining step",
            ),
        ),
    )


def _provenance(result: DemoResult) -> Html:
    machine = result.bench["machine"]
    total = sum(result.seconds.values())
    rows: list[list[page.Cell]] = [
        [name, seconds, 100 * seconds / total] for name, seconds in result.seconds.items()
    ]
    versions = [("Python", platform.python_version()), *((name, _version(name)) for name in _PACKAGES)]
    return page.section(
        "How this page was made",
        page.table(
            [
                Column(title="stage"),
                Column(title="seconds", format=".1f"),
                Column(title="share, %", format=".0f"),
            ],
            rows,
            caption=f"Wall-clock time: {_minutes(total)} in all",
        ),
        page.paragraph(
            f"Machine: {machine['processor']}, {machine['cores']} cores, {platform.system()} "
            f"{platform.machine()}. "
            "Versions: " + ", ".join(f"{name} {number}" for name, number in versions) + "."
        ),
        *(page.details(title, text) for title, text in result.configs.items()),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed, run from its folder)"
