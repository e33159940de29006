"""The page of a run, or of several: configuration, curves, events and pictures out of their folders."""

from fcmae.report.run.page import PAGE, write_run_page, write_runs_page
from fcmae.report.run.record import RunRecord, read_run

__all__ = ["PAGE", "RunRecord", "read_run", "write_run_page", "write_runs_page"]
