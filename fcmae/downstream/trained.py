"""What `eval` and `predict` begin with: a trained network's checkpoint, options and images."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fcmae.arguments import OptionParser
from fcmae.config_io import config_help, dotted, from_dict, load_config, to_dict
from fcmae.convert.files import read_checkpoint, read_newest_checkpoint
from fcmae.data.sources.folders import find_images
from fcmae.errors import InputError
from fcmae.training.engine.checkpoints import require_same_model

Config = TypeVar("Config", bound=Any)

_USAGE = """usage: fcmae NAME train [--config FILE] [--section.field=VALUE ...]
       fcmae NAME eval RUN [--out FILE] [--section.field=VALUE ...]
       fcmae NAME predict RUN IMAGES [IMAGES ...] --out DIR [--overlays] [--section.field=VALUE ...]

fcmae NAME eval --help describes the options of one."""


def eval_or_predict(
    name: str,
    argv: Sequence[str] | None,
    *,
    evaluate: Callable[[list[str]], int],
    predict: Callable[[list[str]], int],
) -> int:
    """Run `fcmae <name> eval` or `predict`; 0 when it is done.

    Raises:
        InputError: another word.
    """
    word, *rest = argv or [""]
    if word == "eval":
        return evaluate(rest)
    if word == "predict":
        return predict(rest)
    if word in ("-h", "--help"):
        print(_USAGE.replace("NAME", name))
        return 0
    raise InputError(
        f"{name}: expected train, eval or predict, got {word or 'none'}. fcmae {name} --help describes them."
    )


def load_trained(
    cls: type[Config], path: str | Path, argv: Sequence[str], *, kind: str
) -> tuple[dict[str, Any], Config, Path]:
    """A checkpoint of `fcmae <kind> train`, and its configuration for one device.

    Args:
        cls: The configuration's class.
        path: A run folder (its newest readable checkpoint), or a checkpoint.
        argv: Options that override the configuration, `--test.flip=true`.
        kind: "detect" or "segment".
    Returns:
        (content, configuration, file).
    Raises:
        InputError: no readable checkpoint of that kind, or options that change the model.
    """
    file = Path(path)
    if file.is_dir():
        found = read_newest_checkpoint(file)
        if found is None:
            raise InputError(f"checkpoint: expected step_*.pt in {file}, got none. Name another run.")
        file, state, refused = found
        for line in refused:
            print(f"refused: {line}")
    else:
        state = read_checkpoint(file)
    if state.get("kind") != kind:
        raise InputError(
            f"checkpoint: expected one of fcmae {kind} train, got {state.get('kind', 'another')} at {file}. "
            "Name another run."
        )
    saved = from_dict(cls, state["config"])
    config = load_config(cls, argv, presets=lambda: dotted(saved))
    require_same_model(state["config"], to_dict(config), path=file)
    config = replace(config, run=replace(config.run, devices=1, nodes=1, strategy="auto"))
    return state, config, file


def parse_options(
    parser: OptionParser, cls: type[Any], argv: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The command's own arguments, and the options of the configuration; `--help` prints both and leaves."""
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        print("\nThe options below override the configuration of the run.\n")
        print(config_help(cls, prog=parser.prog, description=""))
        raise SystemExit(0)
    options = [word for word in argv if word.startswith("--") and "." in word.partition("=")[0]]
    return parser.parse_args([word for word in argv if word not in options]), options


def named_images(images: Sequence[str]) -> dict[str, str]:
    """Path of each image by the name of what is made of it: below its folder, or the file's own, no ending.

    Raises:
        InputError: no such file or folder, or two images of one name.
    """
    names: dict[str, str] = {}
    for given in images:
        folder = Path(given)
        if not folder.exists():
            raise InputError(f"IMAGES: expected a file or a folder, got nothing at {given}. Check the path.")
        paths = list(find_images(given, field="IMAGES")) if folder.is_dir() else [given]
        for path in paths:
            relative = Path(path).relative_to(folder) if folder.is_dir() else Path(Path(path).name)
            name = str(relative.with_suffix(""))
            if name in names:
                raise InputError(
                    f"IMAGES: expected names that differ, got {names[name]} and {path}. Run them one by one."
                )
            names[name] = path
    return names


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to raise where `--out` cannot be written."""
    return InputError(f"--out: expected to write {path}, got: {error.strerror}. Choose another.")
