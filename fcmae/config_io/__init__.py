"""Configurations in and out: a YAML file and the command line become a checked dataclass, and back."""

from fcmae.config_io.load import config_help, dotted, from_dict, load_config, save_config, to_dict
from fcmae.config_io.scale import SCALE_HELP, load_scaled

__all__ = [
    "SCALE_HELP",
    "config_help",
    "dotted",
    "from_dict",
    "load_config",
    "load_scaled",
    "save_config",
    "to_dict",
]
