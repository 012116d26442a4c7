"""`python -m ctrlapi_async`: the command line."""

import sys

from ctrlapi_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
