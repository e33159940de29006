"""Checks of the values that a configuration may hold."""

from fcmae.errors import InputError


def require(ok: bool, message: str) -> None:
    """Raise InputError with `message` unless `ok`."""
    if not ok:
        raise InputError(message)


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise InputError unless `value` is in [low, high], or in (low, high] with `open_low`."""
    inside = (value > low if open_low else value >= low) and value <= high
    bracket = "(" if open_low else "["
    require(inside, f"{name}: expected a value in {bracket}{low:g}, {high:g}], got {value:g}.")
