"""Entry point of `python -m cxr_edge.runtime.cli`."""

import sys

from cxr_edge.runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
