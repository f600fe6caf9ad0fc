"""`command.py FAULT ARGUMENT...`: the command line with a fault (`-`: none). Lightning starts further ranks by it."""

import sys

from tests.faults import inject

if sys.argv[1] != "-":
    inject.strike(sys.argv[1])

if __name__ == "__main__":
    from cogalign.cli import main

    sys.exit(main(sys.argv[2:]))
