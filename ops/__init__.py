"""Operations that are worth a fast version: each is one public function beside a `reference` twin.

`implementation=None` chooses by platform. An implementation that is requested by name raises a
ConfigError where it cannot run. Fast versions on a mesh split rows, heads or channels over its axes
(`ops.implementation`), and tokens over the axis "context" (`ops.context_parallel`).
"""
