"""`python -m fxreduce`: the command line, where its script is not on the path."""

import sys

from fxreduce.cli.main import main

sys.exit(main())
