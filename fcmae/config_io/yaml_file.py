"""A YAML file of a run: its nodes, and its values with the line of every key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fcmae.config_io.messages import Leaf, check_key, sections
from fcmae.errors import InputError


def compose(path: str) -> yaml.Node | None:
    """The nodes of a YAML file; None: it is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        # BaseLoader leaves every scalar a string, for the parser to read by the field's type: YAML 1.1 alone
        # would make a string of 1e-3 and the number 2 of 002.
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError(f"--config: expected a YAML file, got {path} ({reason}).") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}, line {line}: expected YAML, got an error: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, got an error: {' '.join(str(error).split())}.") from None


def method_in(node: yaml.Node) -> str | None:
    """The text at `model.method`."""
    for name in ("model", "method"):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = [value for key, value in entries if key.value == name]
        if not found:
            return None
        node = found[0]
    return node.value if isinstance(node, yaml.ScalarNode) else None


def read_section(
    node: yaml.Node, prefix: str, path: str, leaves: Mapping[str, Leaf], lines: dict[str, int]
) -> dict[str, Any]:
    """The mapping `node` as nested dicts of strings and lists; notes the line of every key."""
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return {}  # a section whose lines are all commented out
    if not isinstance(node, yaml.MappingNode):
        got = node.value if isinstance(node, yaml.ScalarNode) else "a list"
        where = f"{path}, line {node.start_mark.line + 1}"
        raise InputError(
            f"{where}: expected lines of `name: value` in {prefix[:-1] or 'the file'}, got {got}."
        )
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = prefix + (key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping")
        if key in lines:
            raise InputError(
                f"{path}, line {line}: expected each key once, got {key} again (first: {lines[key]})."
            )
        lines[key] = line
        if key in sections(leaves):
            values[key_node.value] = read_section(value_node, key + ".", path, leaves, lines)
        else:
            check_key(key, leaves, f"{path}, line {line}")
            values[key_node.value] = yaml.BaseLoader("").construct_object(value_node, deep=True)
    return values
