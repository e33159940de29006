"""Which network a checkpoint holds: its sizes from its configuration or from the shapes of its weights."""
