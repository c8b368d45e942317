"""`python -m shadowcore` is the `shadowcore` command."""

import gc
import sys

from shadowcore.cli import main

gc.disable()  # until a stage or a command is imported: to look for garbage would take a third of that time
sys.exit(main())
