"""The explorer as one HTML file that needs neither Python nor a network: double-click it.

python -m capsule_lib.explorer.page build/explorer.html
"""

import argparse
import base64
import gzip
import json
import re
from pathlib import Path

from safetensors.torch import save

from capsule_lib.data import load_digits
from capsule_lib.files import read_shipped, writable_path, write_whole
from capsule_lib.weights import WEIGHTS, read_card

ROOM = Path(__file__).parent


def module() -> str:
    """network.js and explorer.js as one ES module: a file on a memory stick and a widget can't import another file."""
    network = (ROOM / "network.js").read_text()
    explorer = (ROOM / "explorer.js").read_text()
    network = re.sub(r"^export ", "", network, flags=re.MULTILINE)
    return network + re.sub(r'^import .* from "./network.js";\n', "", explorer, flags=re.MULTILINE)


def style() -> str:
    return (ROOM / "explorer.css").read_text()


def stand_alone(name: str = "small") -> str:
    """The page: the weights that ship under this name, their spreads, the 1,000 test digits, and all the code."""
    images, labels = load_digits("shipped", "test")
    card = read_card(WEIGHTS / f"{name}.safetensors")
    parts = {
        "weights": read_shipped(f"weights/{name}.safetensors"),
        "spreads": read_shipped(f"weights/{name}.spreads.safetensors"),
        "digits": save({"images": (255 * images).round().byte(), "labels": labels.byte()}),
    }
    packed = {part: base64.b64encode(gzip.compress(content, 9, mtime=0)).decode() for part, content in parts.items()}
    # Nothing in here can end its script early: base64 has no '<', and '</' in the code would be a fault of ours.
    values = json.dumps({"config": card["config"], "label": 4, "link": True, "pad": True, "network": name})
    return PAGE.format(style=style(), module=module(), packed=json.dumps(packed), values=values)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Turn a capsule's dimensions</title>
<style>
html {{ color-scheme: light dark; background: light-dark(#f4f5f7, #0d0f12); }}
body {{ margin: 0; }}
{style}
</style>
<main id="explorer"><p style="padding: 1em; font-family: sans-serif">Loading the network. If this stays, the page needs
a browser from 2024 or later, with JavaScript.</p></main>
<script type="application/json" id="packed">{packed}</script>
<script type="module">
{module}
const main = document.getElementById("explorer");
try {{
  const values = {values};
  for (const [name, text] of Object.entries(JSON.parse(document.getElementById("packed").textContent))) {{
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    values[name] = new Uint8Array(await new Response(unpacked).arrayBuffer());
  }}
  mount(main, values);
}} catch (error) {{
  main.textContent = `The explorer can't be shown: ${{error.message}}`;
}}
</script>
</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser("python -m capsule_lib.explorer.page", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=writable_path)
    path = parser.parse_args().file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({path: stand_alone().encode()})
    print(f"{path.absolute()}  {path.stat().st_size / 1e6:.2f} MB: double-click it")


if __name__ == "__main__":
    main()
