"""`fcmae report`: the page of a run, or one page that compares several."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fcmae.arguments import OptionParser
from fcmae.errors import InputError
from fcmae.report.run.page import PAGE, write_run_page, write_runs_page
from fcmae.report.run.record import names_of, read_run


def build_parser() -> argparse.ArgumentParser:
    """The options of `fcmae report`."""
    parser = OptionParser("fcmae report", "Write the HTML page of a run, or one page that compares several.")
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", help="run folders")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"where the page goes (default: {PAGE} in the run's folder; of several runs: comparison.html)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the page was written.

    Raises:
        InputError: an option or a folder cannot be used.
    """
    arguments = build_parser().parse_args(argv)
    folders = list(dict.fromkeys(map(Path, arguments.runs)))
    runs = [read_run(folder, name=name) for folder, name in zip(folders, names_of(folders), strict=True)]
    out = Path(arguments.out or (folders[0] / PAGE if len(runs) == 1 else "comparison.html"))
    try:
        if len(runs) == 1:
            write_run_page(out, runs[0])
        else:
            write_runs_page(out, runs)
    except OSError as error:
        raise InputError(
            f"--out: expected to write {out}, got: {error.strerror}. Choose another place."
        ) from error
    print(f"wrote {out}")
    return 0
