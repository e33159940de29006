"""Dashboards that show a run's numbers and pictures: TensorBoard, wandb, trackio."""

import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fcmae.config import RunConfig
from fcmae.errors import InputError

STEP = "optimiser_step"
"""What wandb draws curves over: its own counter cannot go back, as a resumed run does."""


class Board:
    """Where the numbers and the pictures of a run are shown."""

    def numbers(self, values: Mapping[str, float], *, step: int) -> None:
        """Show numbers by name after an optimiser step."""
        raise NotImplementedError

    def picture(self, name: str, picture: Tensor, *, step: int) -> None:
        """Show a picture, uint8 [H, W, 3]."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still held."""
        raise NotImplementedError


class TensorBoard(Board):
    """Event files in `<run>/tensorboard`; those of steps that a resumed run repeats are hidden."""

    def __init__(self, run_dir: Path, *, start: int) -> None:
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)

    def numbers(self, values: Mapping[str, float], *, step: int) -> None:
        """Show numbers by name after an optimiser step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, picture: Tensor, *, step: int) -> None:
        """Show a picture, uint8 [H, W, 3]."""
        self._writer.add_image(name, picture.numpy(), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held."""
        self._writer.close()


class Wandb(Board):
    """A run of Weights & Biases, with its files in `<run>/wandb`; online or not as wandb itself is set."""

    def __init__(self, run_dir: Path, *, start: int, project: str, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        try:
            self._run = wandb.init(
                project=project,
                name=_name(run_dir),
                id=_wandb_id(run_dir, new=start == 0),
                resume="allow",
                dir=str(run_dir),
                config=dict(config),
                settings=wandb.Settings(console="off"),  # the progress bar is no log
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"run.loggers: expected wandb to begin a run, got: {reason} Call `wandb login`, set "
                "WANDB_MODE=offline, or leave wandb out."
            ) from error
        self._picture = wandb.Image
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def numbers(self, values: Mapping[str, float], *, step: int) -> None:
        """Show numbers by name after an optimiser step."""
        self._run.log({**values, STEP: step})

    def picture(self, name: str, picture: Tensor, *, step: int) -> None:
        """Show a picture, uint8 [H, W, 3]."""
        self._run.log({name: self._picture(picture.numpy()), STEP: step})

    def close(self) -> None:
        """Write what is still held."""
        self._run.finish()


class Trackio(Board):
    """A run of trackio on this machine, in trackio's own folder."""

    def __init__(self, run_dir: Path, *, start: int, project: str, config: Mapping[str, Any]) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project=project,
            name=_name(run_dir),
            resume="allow" if start else "never",
            config=dict(config),
            embed=False,
        )
        self._picture = trackio.Image

    def numbers(self, values: Mapping[str, float], *, step: int) -> None:
        """Show numbers by name after an optimiser step."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, picture: Tensor, *, step: int) -> None:
        """Show a picture, uint8 [H, W, 3]."""
        self._run.log({name: self._picture(picture.numpy())}, step=step)

    def close(self) -> None:
        """Write what is still held."""
        self._run.finish()


def require_loggers(names: Sequence[str]) -> None:
    """Raise InputError where the library of a logger is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f"run.loggers: expected {name} to be installed, got none. pip install 'fcmae[{name}]', or "
                "leave it out."
            )


def open_boards(run: RunConfig, *, start: int, config: Mapping[str, Any]) -> list[Board]:
    """The dashboards that a run is shown on.

    Args:
        run: Its loggers, its folder and its project.
        start: Optimiser steps already done.
        config: The whole configuration, for the dashboards that show it.
    Raises:
        InputError: one of them cannot begin.
    """
    run_dir, boards = Path(run.dir), list[Board]()
    for name in run.loggers:
        if name == "tensorboard":
            boards.append(TensorBoard(run_dir, start=start))
        else:
            kind = Wandb if name == "wandb" else Trackio
            boards.append(kind(run_dir, start=start, project=run.project, config=config))
    return boards


def _name(run_dir: Path) -> str:
    """The end of the folder's path: `folder-pretrain` for runs/folder/pretrain."""
    return "-".join(run_dir.resolve().parts[-2:])


def _wandb_id(run_dir: Path, *, new: bool) -> str:
    """What tells wandb that a resumed run is the same one."""
    file = run_dir / "wandb" / "run_id.txt"
    if new or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()
