"""`python -m pipeline_lib`: see `command_line`."""

import sys

from pipeline_lib.command_line import main

sys.exit(main())
