"""`python -m fcmae` is the `fcmae` command."""

import sys

from fcmae.cli import main

sys.exit(main())
