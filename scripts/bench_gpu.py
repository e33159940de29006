"""Times of the kernels and of whole pretraining steps on a GPU; ends within nine minutes.

PYTHONPATH=. python3 scripts/bench_gpu.py --out DIR

Needs torch, triton, timm and this repository. See docs/benchmarks.md.
"""

import sys

from fcmae.bench.gpu.command import main

# Guarded, as each arm's process imports this file again.
if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
