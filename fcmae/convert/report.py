"""What became of every key when weights moved from one layout to another."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every source key is in `mapped` or `dropped`, every target key in `mapped` or `missing`."""

    source: str
    """Format of the weights that were read."""
    mapped: dict[str, str]
    """Source key -> target key."""
    dropped: dict[str, str]
    """Source key -> why the target has no place for it."""
    missing: dict[str, str]
    """Target key -> who initialises it instead."""

    def lines(self) -> list[str]:
        """The report as a few lines: one for the mapped keys, one for each reason."""
        renamed = sum(old != new for old, new in self.mapped.items())
        return [
            f"mapped   {len(self.mapped)} keys of {self.source} weights ({renamed} renamed)",
            *_by_reason("dropped ", self.dropped),
            *_by_reason("missing ", self.missing),
        ]

    def table(self) -> list[str]:
        """A line for every key."""
        return [
            *(f"mapped   {key} -> {name}" for key, name in self.mapped.items()),
            *(f"dropped  {key}: {reason}" for key, reason in self.dropped.items()),
            *(f"missing  {key}: {reason}" for key, reason in self.missing.items()),
        ]


def _by_reason(title: str, keys: dict[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for key, reason in keys.items():
        groups.setdefault(reason, []).append(key)
    return [f"{title} {shorten(names)}: {reason}" for reason, names in groups.items()]


def shorten(items: list[str], limit: int = 4) -> str:
    """The first few items, and how many there are when some are left out."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
