"""Mask R-CNN on a pretrained feature pyramid."""
