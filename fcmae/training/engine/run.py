"""What every run does before the first step and after the last one."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from lightning.fabric import Fabric
from torch import nn

from fcmae.config import PixelConfig, RunConfig, TrainConfig
from fcmae.config_io import save_config, to_dict
from fcmae.data import Batch, ImageDataset, Loaded, training_batches
from fcmae.errors import InputError, Stopped
from fcmae.machine import machine, source_commit
from fcmae.report.run import PAGE, read_run, write_run_page
from fcmae.training.engine.checkpoints import Start
from fcmae.training.engine.devices import started_by_fabric
from fcmae.training.engine.interrupt import process_lost
from fcmae.training.engine.logs import RunLog, open_boards, peak_memory_mb

Images = TypeVar("Images")

LOADING = ("workers", "timeout", "max_bad_images", "cache_dir", "cache_gb")
"""Fields of the data that change no image of any batch."""


class TrainingConfig(Protocol):
    """What every kind of training reads of its configuration."""

    @property
    def data(self) -> PixelConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def run(self) -> RunConfig: ...


def batches_of(
    config: TrainingConfig,
    dataset: ImageDataset[Loaded],
    transform: Callable[[Loaded], Images],
    *,
    fabric: Fabric,
    start: Start,
    repeats: int = 1,
) -> Iterator[Batch[Images]]:
    """This process' micro-batches of a run, from `start` to its last step; see `training_batches`."""
    train = config.train
    return training_batches(
        dataset,
        transform,
        batch_size=train.batch_size,
        seed=train.seed,
        start=start.step * train.accumulate,
        stop=train.steps * train.accumulate,
        workers=config.data.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        repeats=repeats,
        timeout=config.data.timeout,
        device=fabric.device,
    )


@contextmanager
def open_run(
    fabric: Fabric, config: TrainingConfig, start: Start, *, model: nn.Module, images: int
) -> Iterator[RunLog]:
    """The run's log; tells and records the beginning, and the end once the loop is through.

    Args:
        fabric: Launched.
        config: Saved as `<run>/config.yaml` and printed.
        start: Where the run begins; refused checkpoints are named in the log.
        model: Counted.
        images: Training images, for the log.
    Raises:
        InputError: the run's folder cannot be written.
        ProcessLostError: another process ended, or did not answer for `run.timeout`.
    """
    began, run_dir = time.perf_counter(), Path(config.run.dir)
    # Every process has read the checkpoint by now: the first one may begin to write.
    fabric.barrier()
    boards = partial(open_boards, config.run, start=start.step, config=to_dict(config))
    with (
        _page_behind(fabric, config.run),
        RunLog(
            run_dir, start=start.step, steps=config.train.steps, rank=fabric.global_rank, boards=boards
        ) as log,
    ):
        if fabric.is_global_zero:
            _save_config(config, run_dir / "config.yaml")
        log.say(yaml.safe_dump(to_dict(config), sort_keys=False))
        for line in _other_batches(start, to_dict(config)):
            log.write("other_batches", step=start.step, change=line)
            log.say(line)
        for line in start.refused:
            log.write("refused_checkpoint", step=start.step, reason=line)
            log.say(f"refused: {line}")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        log.write(
            "start",
            step=start.step,
            images=images,
            parameters=parameters,
            device=str(fabric.device),
            devices=fabric.world_size,
            resumed=None if start.path is None else str(start.path),
            **(_place() if fabric.is_global_zero else {}),
        )
        log.say(
            f"{parameters / 1e6:.2f} M parameters on {fabric.world_size} x {fabric.device}, {images} images, "
            + (f"going on from {start.path}" if start.path is not None else f"starting in {run_dir}")
        )
        try:
            yield log
            seconds = round(time.perf_counter() - began, 3)
            log.write(
                "end", step=config.train.steps, seconds=seconds, peak_memory_mb=peak_memory_mb(fabric.device)
            )
            fabric.barrier()
        except Stopped:
            # The process that started this one answers for both, and Fabric kills it where a code is not 0.
            if not started_by_fabric(fabric):
                raise
        except RuntimeError as error:
            lost = process_lost(log, error, timeout=config.run.timeout)
            if lost is None:
                raise
            raise lost from error


def _place() -> dict[str, Any]:
    """When, on what and by which code a run begins."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": now, **machine(), "commit": source_commit()}


@contextmanager
def _page_behind(fabric: Fabric, run: RunConfig) -> Iterator[None]:
    """Write the run's page when it is through, was stopped or failed, from what its log says by then."""
    try:
        yield
    except Exception:  # an interrupt wants to leave at once
        _write_page(fabric, run)
        raise
    _write_page(fabric, run)


def _write_page(fabric: Fabric, run: RunConfig) -> None:
    if not (fabric.is_global_zero and run.report):
        return
    try:
        write_run_page(Path(run.dir, PAGE), read_run(run.dir))
    except (InputError, OSError) as error:  # the run itself has ended, and said how
        print(f"no {PAGE}: {error}", file=sys.stderr)


def _other_batches(start: Start, config: Mapping[str, Any]) -> Iterator[str]:
    """What a resumed run does otherwise than the uninterrupted one, where its batches are others."""
    if not start.state:
        return
    (before, splits_before), (now, splits) = _batches(start.state["config"]), _batches(config)
    if before != now:
        yield (
            f"resumed with {now} images a step, before {before}: the order of images goes on at image "
            f"{start.step * now} instead of {start.step * before}, and the learning rate follows the batch"
        )
    elif splits_before != splits:
        yield (
            f"resumed as {splits} processes x micro-batches x images, before {splits_before}: images and "
            "masks stay the same, the order of sums and what each process draws (stochastic depth, mixup) "
            "do not"
        )
    saved = start.state["config"]
    fields = [("train", "seed"), *(("data", name) for name in config["data"] if name not in LOADING)]
    changed = [
        f"{section}.{name} = {config[section][name]}, before {saved[section][name]}"
        for section, name in fields
        if name in saved[section] and config[section][name] != saved[section][name]
    ]
    if changed:
        yield f"resumed with {'; '.join(changed)}: from here on the batches may hold other images"


def _batches(config: Mapping[str, Any]) -> tuple[int, str]:
    """Images of an optimiser step, and how they are split."""
    train, run = config["train"], config["run"]
    processes = run["devices"] * run.get("nodes", 1)  # runs had one node only
    images = train["batch_size"] * train["accumulate"] * processes
    return images, f"{processes} x {train['accumulate']} x {train['batch_size']}"


def _save_config(config: Any, path: Path) -> None:
    try:
        save_config(config, path)
    except OSError as error:
        raise InputError(
            f"run.dir: expected to write {path}, got: {error.strerror}. "
            "Free space or choose another --run.dir."
        ) from error


def due(step: int, every: int, steps: int) -> bool:
    """Whether what happens every `every` steps happens after `step` of `steps`; the last always counts."""
    return step % every == 0 or step == steps
