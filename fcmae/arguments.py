"""Command-line options whose mistakes are one line."""

import argparse
from typing import NoReturn

from fcmae.errors import InputError


class OptionParser(argparse.ArgumentParser):
    """argparse without abbreviations, and without the usage text around an error.

    Raises:
        InputError: from `parse_args`, for options that are unknown, missing or of another type.
    """

    def __init__(self, prog: str, description: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise InputError(
            f"{self.prog.removeprefix('fcmae ')}: {message}. {self.prog} --help lists the options."
        )
