"""Dense models made ready for deployment."""
