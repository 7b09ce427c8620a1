"""What a pass over files counts."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ReadStats:
    """Statistics of a pass over a source: bytes read from disk, unreadable documents by split."""

    bytes_read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    # Whether the pass warns of files. Further passes over the same source do not repeat it.
    warns: bool = True
    hold_out: str = ""  # How the held-out splits are cut, where users may not expect it.
