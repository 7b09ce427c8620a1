"""Mathematics worth a fast version: an operation is one public function beside a `reference` twin.

`implementation=None` picks by platform; a name given explicitly fails loudly where it cannot run.
"""
