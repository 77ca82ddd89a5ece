"""What `python -m capsule_lib.train` runs."""

import sys

from capsule_lib.train import main

if __name__ == "__main__":
    sys.exit(main())
