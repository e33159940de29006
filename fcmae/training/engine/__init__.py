"""What every kind of training shares: the loop, its processes, optimiser, checkpoints, guards and logs."""
