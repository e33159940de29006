"""What a run looks like: reconstructions, plots, comparisons and a page that holds them."""

from fcmae.report.reconstruction import reconstruct

__all__ = ["reconstruct"]
