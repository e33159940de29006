"""The fixtures of tests/encoder_runs.py."""

from encoder_runs import as_users_run, folder_data, image_folder

__all__ = ["as_users_run", "folder_data", "image_folder"]
