"""What a GPU makes of the kernels and of whole steps: what `scripts/bench_gpu.py` runs."""
