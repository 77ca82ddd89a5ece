"""Write the explorer as one HTML file, to be double-clicked, put on a memory stick or on any web server.

python -m capsule_lib.explorer build/explorer.html
"""

import argparse

from capsule_lib.explorer.page import stand_alone
from capsule_lib.files import writable_path, write_whole


def main() -> None:
    parser = argparse.ArgumentParser("python -m capsule_lib.explorer", description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", type=writable_path, help="where to, such as build/explorer.html; an old one is replaced"
    )
    path = parser.parse_args().file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({path: stand_alone().encode()})
    print(f"{path.absolute()}: {path.stat().st_size / 1e6:.2f} MB, opens with a double click")


if __name__ == "__main__":
    main()
