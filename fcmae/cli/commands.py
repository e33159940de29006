"""The subcommands of `fcmae`. Each imports what it needs when it runs: help and typos answer at once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fcmae.errors import InputError


class Command(NamedTuple):
    """What `fcmae --help` says of a subcommand, and the function that takes the arguments after its name."""

    summary: str
    run: Callable[[list[str]], int | None]


def _pretrain(argv: list[str]) -> None:
    from fcmae.config import PretrainConfig

    def run(config: PretrainConfig) -> None:
        from fcmae.training.pretrain import pretrain

        pretrain(config)

    _train("pretrain", PretrainConfig, argv, run)


def _finetune(argv: list[str]) -> None:
    from fcmae.config import FinetuneConfig

    def run(config: FinetuneConfig) -> None:
        from fcmae.training.finetune import finetune

        finetune(config)

    _train("finetune", FinetuneConfig, argv, run)


def _train(name: str, cls: type[Any], argv: list[str], run: Callable[[Any], None]) -> None:
    """Read the configuration before torch is imported, then run; an interrupt says what is kept."""
    from fcmae.config_io import SCALE_HELP, config_help, load_scaled

    if "-h" in argv or "--help" in argv:
        print(config_help(cls, argv, prog=f"fcmae {name}", description=COMMANDS[name.split()[0]].summary))
        print(SCALE_HELP)
        return
    config, scaled = load_scaled(cls, argv)
    if scaled is not None:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only(print)(scaled)
    try:
        run(config)
    except KeyboardInterrupt:
        checkpoints = Path(config.run.dir, "checkpoints")
        if not any(checkpoints.glob("*.pt")):
            raise KeyboardInterrupt(f"No checkpoint was written to {checkpoints} yet.") from None
        raise KeyboardInterrupt(
            f"The checkpoints in {checkpoints} are kept; the same command with --resume=auto goes on."
        ) from None


def _detect(argv: list[str]) -> int | None:
    if argv[:1] != ["train"]:
        from fcmae.downstream.detection import command

        return command.main(argv)
    from fcmae.config import DetectConfig

    def run(config: DetectConfig) -> None:
        from fcmae.downstream.detection.train import train_detector

        train_detector(config)

    _train("detect train", DetectConfig, argv[1:], run)
    return None


def _segment(argv: list[str]) -> int | None:
    if argv[:1] != ["train"]:
        from fcmae.downstream.segmentation import command

        return command.main(argv)
    from fcmae.config import SegmentConfig

    def run(config: SegmentConfig) -> None:
        from fcmae.downstream.segmentation.train import train_segmenter

        train_segmenter(config)

    _train("segment train", SegmentConfig, argv[1:], run)
    return None


def _evaluate(argv: list[str], *, only: str | None = None) -> None:
    """`only`: the one protocol of a short name."""
    from fcmae.config import EvaluateConfig

    if only is not None:
        if any(word.partition("=")[0] == "--protocols" for word in argv):
            raise InputError(f"protocols: expected none for fcmae {only}. Use fcmae evaluate.")
        argv = [*argv, f"--protocols={only}"]

    def run(config: EvaluateConfig, checkpoints: list[str]) -> None:
        from fcmae.protocols.evaluate import evaluate

        print(evaluate(config, checkpoints).text())

    _measure(only or "evaluate", EvaluateConfig, argv, run)


def _diversity(argv: list[str]) -> None:
    from fcmae.config import DiversityConfig

    def run(config: DiversityConfig, checkpoints: list[str]) -> None:
        from fcmae.evaluation.diversity.command import compare_diversity

        compare_diversity(config, checkpoints)

    _measure("diversity", DiversityConfig, argv, run)


def _measure(name: str, cls: type[Any], argv: list[str], run: Callable[[Any, list[str]], None]) -> None:
    """Read checkpoints, which come first, and the configuration, mistakes in it before torch is imported.

    What is not given of `data` is as in the training of the first checkpoint that says so.
    """
    from fcmae.config_io import config_help, load_config

    if "-h" in argv or "--help" in argv:
        print(config_help(cls, prog=f"fcmae {name} CKPT [CKPT ...]", description=COMMANDS[name].summary))
        return
    count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    checkpoints = argv[:count]

    def presets() -> dict[str, Any]:
        from fcmae.evaluation.settings import data_presets

        return data_presets(checkpoints)

    run(load_config(cls, argv[count:], presets=presets), checkpoints)


def _convert(argv: list[str]) -> int | None:
    from fcmae.convert import command

    return command.main(argv)


def _reconstruct(argv: list[str]) -> int | None:
    from fcmae.report import command

    return command.main(argv)


def _report(argv: list[str]) -> int | None:
    from fcmae.report.run import command

    return command.main(argv)


def _data(argv: list[str]) -> int | None:
    if argv[:1] == ["samples"]:
        from fcmae.downstream import samples

        return samples.main(argv[1:])
    from fcmae.data import command

    return command.main(argv)


def _bench(argv: list[str]) -> int | None:
    if argv[:1] == ["step"]:
        from fcmae.bench import step

        return step.main(argv[1:])
    if argv[:1] == ["ops"]:
        from fcmae.bench import ops

        return ops.main(argv[1:])
    if argv[:1] == ["data"]:
        from fcmae.bench import data

        return data.main(argv[1:])
    got = argv[0] if argv else "none"
    if got in ("-h", "--help"):
        print(
            "usage: fcmae bench {step,ops,data} ...\n\n"
            "  step  forward and backward of a pretraining step, sparse against masked dense\n"
            "  ops   each sparse operation on every engine of this machine\n"
            "  data  the loader against torchvision's\n\n"
            "fcmae bench step --help describes the options of one."
        )
        return 0
    raise InputError(f"bench: expected step, ops or data, got {got}. Write fcmae bench step, for one.")


def _ablate(argv: list[str]) -> int | None:
    from fcmae.ablation import command

    return command.main(argv)


COMMANDS = {
    "pretrain": Command("Pretrain an encoder on images without labels.", _pretrain),
    "finetune": Command("Fine-tune a classifier from pretrained or random weights.", _finetune),
    "detect": Command("Train Mask R-CNN on a pretrained encoder, measure it, or detect.", _detect),
    "segment": Command("Train UPerNet on a pretrained encoder, measure it, or segment images.", _segment),
    "evaluate": Command("Compare encoders by k-NN, linear probe, few labels and fine-tuning.", _evaluate),
    "knn": Command("As evaluate, k nearest neighbours only.", partial(_evaluate, only="knn")),
    "probe": Command("As evaluate, a linear probe only.", partial(_evaluate, only="probe")),
    "lowshot": Command("As evaluate, few labelled images only.", partial(_evaluate, only="lowshot")),
    "diversity": Command("Compare how diverse the features of networks are.", _diversity),
    "convert": Command("Write a checkpoint's weights in another format, verified.", _convert),
    "reconstruct": Command("Draw what a pretrained model makes of masked images.", _reconstruct),
    "report": Command("Write the page of a run, or one that compares several runs.", _report),
    "data": Command(
        "Describe images (fcmae data stats), pack them into shards (shard), or write samples (samples).",
        _data,
    ),
    "ablate": Command("Run the arms and seeds of an ablation and write one table.", _ablate),
    "bench": Command("Measure a pretraining step, each operation or the loader (fcmae bench data).", _bench),
}
