"""`python -m anchoreval`."""

import sys

from anchoreval.cli.parser import main

sys.exit(main())
