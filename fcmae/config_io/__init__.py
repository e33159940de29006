"""Configurations in and out: a YAML file and the command line become a checked dataclass, and back."""

from fcmae.config_io.load import config_help, from_dict, load_config, save_config, to_dict

__all__ = ["config_help", "from_dict", "load_config", "save_config", "to_dict"]
