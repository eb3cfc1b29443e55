"""What a finished run tells its caller."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sslim.backbone.contents import RECORD
from sslim.runs.facts import RunFacts


@dataclass(frozen=True)
class CompressionResult:
    """What came out, as it is written to `sslim.json`."""

    out: Path
    family: str
    parameters: int
    dense_parameters: int
    macs_per_second: int
    dense_macs_per_second: int
    file_bytes: int
    layers: dict[int, dict[str, float]]
    """Mapped layer -> cosine similarity and L1 distance to the teacher, through the projections, on audio
    that was held out of training; on training audio where `held_out` is empty."""
    undecided: int
    units: int
    seconds: float
    held_out: dict[str, Any]
    """What was held out of training: `utterances` and `seconds` that were measured, how they were `chosen`,
    `layers` as above, and the `loss`. Empty where nothing was held out."""

    @classmethod
    def read(cls, out: Path) -> CompressionResult:
        """The result of the finished run in a folder.

        Raises:
            OutputError: its `sslim.json` cannot be read.
        """
        result = asdict(RunFacts.read(out / RECORD).result)
        result["held_out"] = result["held_out"] or {}
        names = [item.name for item in fields(cls) if item.name != "out"]
        return cls(out=out, **{name: result[name] for name in names})

    def summary_line(self) -> str:
        """One line: parameters, MACs, file size, distance per mapped layer."""
        heard = (
            f"on {self.held_out['utterances']:,} held-out utterances"
            if self.held_out
            else "on audio that was trained on"
        )
        layers = " ".join(
            f"{layer or 'front'}:{row['cosine']:.3f}" for layer, row in self.layers.items()
        )
        distance = f", cosine to the teacher by layer {layers} {heard}" if layers else ""
        return (
            f"{self.out}: {self.parameters:,} parameters "
            f"({self.parameters / self.dense_parameters:.1%} of {self.dense_parameters:,}), "
            f"{self.macs_per_second / 1e9:.3g} GMACs per second of audio "
            f"({self.macs_per_second / self.dense_macs_per_second:.1%}), "
            f"{self.file_bytes / 1e6:.1f} MB{distance}"
        )
