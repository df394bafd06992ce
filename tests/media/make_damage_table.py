"""Write the tables of docs/data.md that say what becomes of damaged files: `python tests/media/make_damage_table.py`.

Both back ends are counted, so decord has to be installed. It takes some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stand_ins.damage_counts import BEGIN, END, damage_tables

PAGE = Path(__file__).parents[2] / "docs" / "data.md"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = damage_tables(Path(folder), decord=True)
    text = PAGE.read_text(encoding="utf-8")
    before, behind = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(before + "\n" + "\n".join(lines) + "\n" + behind, encoding="utf-8")
    print("\n".join(lines))
