"""`python -m cogalign` is `cogalign`."""

import sys

from cogalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
