"""`python -m dtun`."""

import sys

from dtun.cli import main

sys.exit(main())
