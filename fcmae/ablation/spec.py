"""What an ablation is: a base, arms that differ from it, seeds and metrics, from one YAML file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fcmae.config import FinetuneConfig, PretrainConfig, check_range, require
from fcmae.config_io import load_config
from fcmae.config_io.yaml_file import compose
from fcmae.errors import InputError

METRICS = (
    *("loss", "knn", "probe"),
    *("lowshot_1", "lowshot_2", "lowshot_5", "lowshot_1percent"),
    "finetune",
)
"""Mean loss of the last tenth of pretraining; accuracies of frozen features; accuracy after fine-tuning."""

KEYS = ("title", "base", "finetune", "hold_out", "changes", "arms", "seeds", "metrics", "equal")
_REQUIRED = ("title", "base", "arms", "seeds", "metrics")
_OURS = ("run.dir", "train.seed", "resume", "model.weights")
"""What the harness sets."""
_HELD_OUT = ("data.source", "data.root", "data.val_root")
"""What it sets with `hold_out`."""


@dataclass(frozen=True, kw_only=True)
class EqualArms:
    """Two arms that compute the same: their losses must agree, and their times can be compared."""

    arms: tuple[str, str]
    steps: int
    """First steps over which they are compared."""
    tolerance: float
    """Largest difference of the losses, absolute."""


@dataclass(frozen=True, kw_only=True)
class AblationSpec:
    """One ablation, as its file says."""

    path: Path
    title: str
    base: Path
    """Configuration of the pretraining that all arms share."""
    finetune: Path | None
    """Configuration of the fine-tuning that follows; None: there is none."""
    hold_out: float | None
    """Share of the built-in scans that no training sees; None: the base's own images."""
    changes: Mapping[str, str]
    """Differences of every arm from the base, by dotted key; `finetune.` before those of the fine-tuning."""
    arms: Mapping[str, Mapping[str, str]]
    """Name -> further differences, likewise."""
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    equal: EqualArms | None

    def pretrain_config(self, arm: str, *, seed: int, out: Path) -> PretrainConfig:
        """The pretraining of one run.

        Raises:
            InputError: the base or a difference cannot be used.
        """
        options = {"resume": "auto", "train.seed": str(seed), "run.dir": str(run_folder(out, arm, seed))}
        return self._load(PretrainConfig, self.base, arm, options, self._differences(arm, False), out=out)

    def finetune_config(self, arm: str, *, seed: int, out: Path) -> FinetuneConfig:
        """The fine-tuning of one run, from its pretrained weights.

        Raises:
            InputError: as `pretrain_config`.
        """
        assert self.finetune is not None
        folder = run_folder(out, arm, seed)
        options = {
            "resume": "auto",
            "train.seed": str(seed),
            "run.dir": str(folder / "finetune"),
            "model.weights": str(folder),
        }
        return self._load(FinetuneConfig, self.finetune, arm, options, self._differences(arm, True), out=out)

    def _differences(self, arm: str, finetune: bool) -> dict[str, str]:
        both = {**self.changes, **self.arms[arm]}
        return {
            key.removeprefix("finetune."): value
            for key, value in both.items()
            if key.startswith("finetune.") is finetune
        }

    def _load(
        self,
        cls: Any,
        file: Path,
        arm: str,
        options: dict[str, str],
        differences: dict[str, str],
        *,
        out: Path,
    ) -> Any:
        if self.hold_out is not None:
            scans = scans_folder(out)
            options |= {
                "data.source": "folder",
                "data.root": str(scans / "train"),
                "data.val_root": str(scans / "val"),
            }
        words = [f"--{key}={value}" for key, value in {**differences, **options}.items()]
        try:
            return load_config(cls, ["--config", str(file), *words])
        except InputError as error:
            raise InputError(f"{self.path}, arm {arm}: {error}") from None


def scans_folder(out: Path) -> Path:
    """Where the built-in scans lie as files, when some are held out."""
    return out / "scans"


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """The folder of one pretraining run."""
    return out / arm / f"seed_{seed}"


def load_spec(path: Path, options: Mapping[str, str] | None = None) -> AblationSpec:
    """Read an ablation's file; paths in it are relative to its folder.

    Args:
        path: The file.
        options: Further differences of every arm by dotted key, such as where the images are.
    Raises:
        InputError: the file cannot be read, or says something that cannot be meant.
    """
    node = compose(str(path))
    values = _plain(node, path) if node is not None else {}
    require(
        isinstance(values, dict), f"{path}: expected lines of `name: value`, got a {type(values).__name__}."
    )
    unknown = [key for key in values if key not in KEYS]
    require(not unknown, f"{path}: expected the keys {', '.join(KEYS)}, got {', '.join(unknown)}.")
    missing = [key for key in _REQUIRED if not values.get(key)]
    require(not missing, f"{path}: expected all of {', '.join(_REQUIRED)}, got no {', '.join(missing)}.")
    arms = {
        name: _differences(path, f"arms.{name}", changes)
        for name, changes in _mapping(path, values, "arms").items()
    }
    changes = _differences(path, "changes", values.get("changes", ""))
    changes |= _differences(path, "the options", dict(options or {}))
    for name in arms:
        require(
            re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", name) is not None and name != "scans",
            f"{path}: expected an arm's name of letters, digits and _.+=-, got {name}. It names a folder.",
        )
    seeds = tuple(_number(path, "seeds", word, int) for word in _list(path, values, "seeds"))
    metrics = tuple(_list(path, values, "metrics"))
    for key, found, known in (("seeds", seeds, None), ("metrics", metrics, METRICS)):
        require(len(set(found)) == len(found), f"{path}: expected each of {key} once, got {list(found)}.")
        strange = [word for word in found if known is not None and word not in known]
        require(
            not strange,
            f"{path}: expected {key} of {', '.join(known or ())}, got {', '.join(map(str, strange))}.",
        )
    finetune = values.get("finetune")
    tuned = any(key.startswith("finetune.") for each in (changes, *arms.values()) for key in each)
    require(
        bool(finetune) or ("finetune" not in metrics and not tuned),
        f"{path}: expected `finetune: FILE` beside the metric finetune and differences of it, got none.",
    )
    hold_out = values.get("hold_out")
    if hold_out is not None:
        hold_out = _number(path, "hold_out", hold_out, float)
        check_range(f"{path}: hold_out", hold_out, 0.0, 0.9, open_low=True)
        placed = [
            key
            for each in (changes, *arms.values())
            for key in each
            if key.removeprefix("finetune.") in _HELD_OUT
        ]
        require(
            not placed,
            f"{path}: expected no {', '.join(placed)} beside hold_out, which takes the built-in scans. Leave "
            "either out.",
        )
    return AblationSpec(
        path=path,
        title=values["title"],
        base=path.parent / values["base"],
        finetune=path.parent / finetune if finetune else None,
        hold_out=hold_out,
        changes=changes,
        arms=arms,
        seeds=seeds,
        metrics=metrics,
        equal=_equal(path, values, arms),
    )


def _plain(node: yaml.Node, path: Path) -> Any:
    """Dicts, lists and strings; a value is read by its field's type later. A list stays text: `[1, 2]`."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, path) for child in node.value]
    values: dict[str, Any] = {}
    for key, child in node.value:
        name, line = _plain(key, path), key.start_mark.line + 1
        require(isinstance(name, str), f"{path}, line {line}: expected a name, got a list or a mapping.")
        require(name not in values, f"{path}, line {line}: expected each key once, got {name} again.")
        values[name] = _plain(child, path)
    return values


def _mapping(path: Path, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values[key]
    require(isinstance(found, dict), f"{path}: expected lines of `name: value` in {key}, got {found}.")
    return found


def _list(path: Path, values: Mapping[str, Any], key: str) -> list[str]:
    found = values[key]
    flat = isinstance(found, list) and all(isinstance(word, str) for word in found)
    require(flat, f"{path}: expected a list in {key}, got {found}. Write [a, b].")
    return found


def _number(path: Path, key: str, word: Any, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(word)
    except (TypeError, ValueError):
        what = {int: "integers", float: "a number"}[kind]  # pyright: ignore[reportArgumentType]
        raise InputError(f"{path}: expected {what} in {key}, got {word}.") from None


def _differences(path: Path, where: str, found: Any) -> dict[str, str]:
    """Dotted key -> text, as it would stand on the command line."""
    if found == "":
        return {}
    require(
        isinstance(found, dict), f"{path}: expected lines of `section.field: value` in {where}, got {found}."
    )
    for key, value in found.items():
        taken = key.removeprefix("finetune.") in _OURS
        require(not taken, f"{path}: expected no {key} in {where}: the harness sets it. Leave it out.")
        require(
            not isinstance(value, dict),
            f"{path}: expected a dotted key in {where}, got the section {key}. Write {key}.<field>: value.",
        )
    return {key: _word(value) for key, value in found.items()}


def _word(value: str | Sequence[Any]) -> str:
    return value if isinstance(value, str) else f"[{','.join(map(_word, value))}]"


def _equal(path: Path, values: Mapping[str, Any], arms: Mapping[str, Any]) -> EqualArms | None:
    if "equal" not in values:
        return None
    found = _mapping(path, values, "equal")
    keys = {"arms", "steps", "tolerance"}
    require(
        set(found) == keys, f"{path}: expected {', '.join(sorted(keys))} in equal, got {', '.join(found)}."
    )
    names = _list(path, found, "arms")
    require(
        len(set(names)) == 2 == len(names) and set(names) <= set(arms),
        f"{path}: expected two of the arms in equal.arms, got {names}.",
    )
    steps = _number(path, "equal.steps", found["steps"], int)
    require(steps >= 1, f"{path}: expected at least 1 in equal.steps, got {steps}.")
    return EqualArms(
        arms=(names[0], names[1]),
        steps=steps,
        tolerance=_number(path, "equal.tolerance", found["tolerance"], float),
    )
