"""A sparse checkpoint becomes dense weights, verified; the same as `fcmae convert`.

python scripts/convert_sparse_to_dense.py runs/NAME --verify
"""

import sys

from fcmae.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
