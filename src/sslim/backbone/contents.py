"""What a saved folder holds: the names of its files, in one list, and `sslim.json`, the record of them.

Pure Python: nothing here loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sslim.records import Name, Record

RECORD = "sslim.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODEL_CODE = "modeling_sslim.py"
PREPROCESSOR = "preprocessor_config.json"
CARD = "README.md"
REPORT = "report.html"
TOKENIZER = (
    "vocab.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Of a fine-tuned teacher, whose head goes on needing them."""
ASIDE = ".sslim.partial"
"""Where the files of a folder are written first: inside it, as it may be a disk of its own."""

MODEL_FILES = (RECORD, CONFIG, WEIGHTS, MODEL_CODE, PREPROCESSOR)
"""What a folder of ours holds. Weights that are too large for one file have an index and parts instead."""
FILES = (*MODEL_FILES, WEIGHTS_INDEX, CARD, REPORT, *TOKENIZER)
"""All that sslim may write into a folder, besides the parts of large weights (`PART_OF_WEIGHTS`)."""
PART_OF_WEIGHTS = r"model-\d{5}-of-\d{5}\.safetensors"
COMPUTING = (CONFIG, PREPROCESSOR)
"""Files besides the weights that change what a model computes."""
SETTINGS = (*COMPUTING, "processor_config.json", "tokenizer_config.json", "adapter_config.json")
"""Files, ours or not, in which a library looks for names of code."""


@dataclass(frozen=True, kw_only=True)
class FolderFacts(Record):
    """`sslim.json`: what a folder's files were when they were written."""

    KIND: ClassVar[str] = "model"
    READS: ClassVar[tuple[str, ...]] = ("run", "conversion", "baseline")
    TITLE: ClassVar[str] = "the record of a saved folder"

    fingerprint: str = ""
    """Identity of the model as it loads; empty in folders of version 0.1."""
    files: dict[str, str] = field(default_factory=dict)
    """Name of each file -> its SHA-256; empty in folders of version 0.1."""

    def to_dict(self) -> dict[str, Any]:
        """As `Record.to_dict`; identity and files, which are long, come last."""
        facts = super().to_dict()
        return facts | {name: facts.pop(name) for name in ("fingerprint", "files")}


@dataclass(frozen=True)
class ConvertedFrom:
    """What a model was converted from."""

    file: Name
    """Name of the file, or id on the hub."""
    format: Name
    """In words, such as `fairseq`."""
    commit: str | None = None
    """Of a model on the hub."""


@dataclass(frozen=True, kw_only=True)
class ConversionFacts(FolderFacts):
    """`sslim.json` of a converted model."""

    KIND: ClassVar[str] = "conversion"
    READS: ClassVar[tuple[str, ...]] = ()
    TITLE: ClassVar[str] = "the record of a converted model"

    converted_from: ConvertedFrom
