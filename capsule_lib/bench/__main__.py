"""What `python -m capsule_lib.bench` runs."""

import sys

from capsule_lib.bench import main

if __name__ == "__main__":
    sys.exit(main())
