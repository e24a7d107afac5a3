"""`python -m anchoreval`."""

import sys

from anchoreval.cli import main

sys.exit(main())
