"""`python -m shadowcore` is the `shadowcore` command."""

import sys

from shadowcore.cli import main

sys.exit(main())
