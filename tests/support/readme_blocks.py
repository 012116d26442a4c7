"""The README's Python blocks by heading; as a script, writes each into a file of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    re.findall(r"^#+ (.+)$", README[: block.start()], re.MULTILINE)[-1]: block[1]
    for block in re.finditer(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
}


def write_blocks(folder: Path) -> None:
    """Write the blocks as modules, for type-checkers."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, code in BLOCKS.items():
        name = re.sub(r"\W+", "_", title.lower())
        (folder / f"readme_{name}.py").write_text(code, encoding="utf-8")


if __name__ == "__main__":
    write_blocks(Path(sys.argv[1]))
