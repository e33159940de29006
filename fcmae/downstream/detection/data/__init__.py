"""Annotated images: COCO files, checked instances, and what training makes of them."""
