"""The sparse encoder against the same one on all sites, masked or leaking, on built-in images.

What `fcmae ablate --config configs/ablations/sparse_vs_dense.yaml` runs; takes its further options. What is
done is skipped, an interrupted run goes on.
"""

import sys
from pathlib import Path

from fcmae.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "ablations" / "sparse_vs_dense.yaml"

if __name__ == "__main__":
    sys.exit(main(["ablate", "--config", str(CONFIG), *sys.argv[1:]]))
