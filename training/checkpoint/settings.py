"""The settings of the checkpoints of a run."""

from settings.types import NonNegativeInt, PositiveInt, config


@config
class CheckpointConfig:
    """Settings of the checkpoints of a run."""

    every: NonNegativeInt = 200  # Steps between checkpoints; 0 saves one at the end only.
    keep: PositiveInt = 2  # Number of newest valid checkpoints to keep.
    # Read all bytes back after a save and before a restore; false compares file sizes only.
    verify: bool = True
