"""Ablations: the same training with single differences, over several seeds, in one table."""
