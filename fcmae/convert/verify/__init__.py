"""Proof by running: source and target compute the same features."""
