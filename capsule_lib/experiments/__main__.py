"""What `python -m capsule_lib.experiments` runs."""

import sys

from capsule_lib.experiments.command import main

if __name__ == "__main__":
    sys.exit(main())
