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


def require_halves(name: str, value: float | None) -> None:
    """Raise InputError unless `value` is a multiple of 0.5 from 0 on, or None."""
    got = "none" if value is None else f"{value:g}"
    require(
        value is None or (value >= 0 and 2 * value % 1 == 0),
        f"{name}: expected a number of blocks, 0, 0.5, 1, 1.5 ..., got {got}.",
    )
