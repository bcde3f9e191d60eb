"""Entry point of `python -m cxr_edge.runtime.cli`."""

import sys

from cxr_edge.runtime.cli.main import main

sys.exit(main())
