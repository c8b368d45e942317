"""Which figures of a model were drawn, and why the others were left out: the record that `draw` writes."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shadowcore import artifacts

SCHEMA = "figures/1"


class Drawn(NamedTuple):
    """One model's figures: the PNG file of each that was drawn, and why each of the others was not."""

    model: str
    files: dict[str, Path]
    left_out: dict[str, str]

    def sentence(self) -> str:
        """One line about the figures that were left out, those of one reason together; nothing if there are none."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        words = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        return f"Not drawn for {self.model}: {words}." if words else ""


def read(records: Iterable[Path]) -> list[Drawn]:
    """What each record says; the figures are in the folder of its name."""
    found = []
    for path in records:
        record = artifacts.read_record(path, SCHEMA)
        files = {name: path.with_suffix("") / f"{name}.png" for name in record["drawn"]}
        found.append(Drawn(path.stem, files, record["left_out"]))
    return found
