"""A YAML file and the command line become a checked dataclass, and back."""

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace

from fcmae.config import METHOD_CONFIGS, ModelConfig
from fcmae.config_io.messages import Leaf, check_key, refusal, sections
from fcmae.config_io.yaml_file import compose, method_in, read_section
from fcmae.errors import InputError

Config = TypeVar("Config")

CONFIG_HELP = "YAML file with the differences from the defaults; options given here override it."


def load_config(
    cls: type[Config], argv: Sequence[str], *, presets: Callable[[], Mapping[str, Any]] | None = None
) -> Config:
    """The configuration that `--config FILE` and dotted options (`--train.steps=5`) describe.

    Both are read as text, by the field's type, so that `1e-3`, `null`, `[0.5, 1.0]` and `002` mean the same
    in a file and on the command line. Options override the file wherever they stand. Nothing is printed.

    Args:
        cls: PretrainConfig or FinetuneConfig.
        argv: The arguments after the command's name.
        presets: Gives defaults that take the place of the class's own, by dotted key; asked once the file and
            the options have proved readable.
    Raises:
        InputError: an unreadable file, an unknown key (the nearest is named), a value of another type, or one
            that the configuration itself refuses.
    """
    paths, method, options = _split_config(argv)
    if len(paths) > 1:
        raise InputError(f"--config: expected one file, got {len(paths)}. A run has one YAML file.")
    node = compose(paths[0]) if paths else None
    defaults = _defaults(cls, method or (node and method_in(node)))
    leaves = _leaves(defaults)

    def parse(leaves: Mapping[str, Leaf]) -> Namespace:
        parser = _parser(defaults, leaves)
        namespace = _parse_node(parser, node, paths[0], leaves) if paths else None
        for option in options:
            if option.startswith("--"):
                check_key(option[2:].partition("=")[0], leaves, "command line")
        try:
            return parser.parse_args(options, namespace)
        except argparse.ArgumentError as error:
            raise refusal(error, leaves, "command line") from None

    parsed = parse(leaves)
    if presets is not None:
        preset = {key: dataclasses.replace(leaves[key], default=value) for key, value in presets().items()}
        parsed = parse({**leaves, **preset})
    return _build(defaults, parsed)


def config_help(cls: type[Any], argv: Sequence[str] = (), *, prog: str, description: str) -> str:
    """The text of `--help`: every option with its docstring, type and default.

    `--model.method` in `argv` says whose options; `--config` is not read.
    """
    defaults = _defaults(cls, _split_config([word for word in argv if word not in ("-h", "--help")])[1])
    parser = _parser(defaults, _leaves(defaults))
    parser.prog, parser.description = prog, description
    parser.usage = f"{prog} [--config FILE] [--section.field=VALUE ...]"
    return parser.format_help()


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, lists for tuples: safe for YAML and `torch.load`."""
    return {
        field.name: to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, field.name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for field in dataclasses.fields(config)
    }


def dotted(config: Any) -> dict[str, Any]:
    """Every value of the configuration by its dotted key, as `presets` of `load_config`."""
    return {key: leaf.default for key, leaf in _leaves(config).items()}


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration that `to_dict` gave; keys that are missing take their defaults.

    Raises:
        InputError: as `load_config`.
    """
    model = values.get("model")
    defaults = _defaults(cls, model.get("method") if isinstance(model, Mapping) else None)
    leaves = _leaves(defaults)
    for key in _flat_keys(values, leaves):
        check_key(key, leaves, "configuration")
    try:
        parsed = _parser(defaults, leaves).parse_object(dict(values))
    except argparse.ArgumentError as error:
        raise refusal(error, leaves, "configuration") from None
    return _build(defaults, parsed)


def save_config(config: Any, path: str | Path) -> None:
    """Write every value of the configuration as YAML that `--config` reads."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def _defaults(cls: Any, method: str | None) -> Any:
    """The configuration without a file and options: the fields of its `model` are those of the method."""
    if method is None or get_type_hints(cls).get("model") is not ModelConfig:
        return cls()
    if method not in METHOD_CONFIGS:
        known = " or ".join(METHOD_CONFIGS)
        nearest = difflib.get_close_matches(method, METHOD_CONFIGS, n=1)
        advice = f"The nearest is {nearest[0]}." if nearest else "Choose one of them."
        raise InputError(f"model.method: expected {known}, got {method}. {advice}")
    return cls(model=METHOD_CONFIGS[method]())


def _leaves(defaults: Any) -> dict[str, Leaf]:
    """The values of a configuration by dotted key, in order."""
    return {leaf.key: leaf for leaf in _walk("", defaults)}


def _walk(prefix: str, defaults: Any) -> Iterator[Leaf]:
    cls = type(defaults)
    hints = get_type_hints(cls)
    helps = {
        param.arg_name: param.description or ""
        for base in reversed(cls.__mro__[:-1])  # a field keeps the docstring of the class that declared it
        for param in parse_from_object(base).params
    }
    for field in dataclasses.fields(cls):
        key, value = prefix + field.name, getattr(defaults, field.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(key + ".", value)
        else:
            yield Leaf(key, hints[field.name], value, helps.get(field.name, ""))


def _parser(defaults: Any, leaves: Mapping[str, Leaf]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    groups: dict[str, Any] = {}
    for leaf in leaves.values():
        section = leaf.key.rpartition(".")[0]
        if section not in groups:
            title = (getattr(defaults, section) if section else defaults).__doc__ or section
            groups[section] = parser.add_argument_group(title.splitlines()[0].rstrip("."))
        groups[section].add_argument(f"--{leaf.key}", type=leaf.hint, default=leaf.default, help=leaf.help)
    return parser


def _split_config(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The values of `--config`, the method, and all arguments but `--config`.

    The file has to be read before options override it, and the method decides which options there are.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        known, options = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        raise InputError("--config: expected a YAML file, got none. Write --config FILE.") from None
    parser.add_argument("--model.method", dest="method", nargs="?")
    return known.config, parser.parse_known_args(options)[0].method, options


def _parse_node(
    parser: ArgumentParser, node: yaml.Node | None, path: str, leaves: Mapping[str, Leaf]
) -> Namespace:
    lines: dict[str, int] = {}
    values = {} if node is None else read_section(node, "", path, leaves, lines)
    try:
        return parser.parse_object(values)
    except argparse.ArgumentError as error:
        raise refusal(error, leaves, path, lines) from None


def _flat_keys(values: Mapping[str, Any], leaves: Iterable[str], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if prefix + name in sections(leaves) and isinstance(value, Mapping):
            yield from _flat_keys(value, leaves, f"{prefix}{name}.")
        else:
            yield prefix + name


def _build(defaults: Config, parsed: Namespace) -> Config:
    """A configuration of the classes of `defaults`; their `__post_init__` may raise InputError."""
    return type(defaults)(
        **{
            field.name: _build(default, parsed[field.name])
            if dataclasses.is_dataclass(default := getattr(defaults, field.name))
            else parsed[field.name]
            for field in dataclasses.fields(defaults)  # type: ignore[arg-type]
        }
    )
