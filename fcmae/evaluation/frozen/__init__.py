"""Protocols that learn from the features of a frozen encoder."""
