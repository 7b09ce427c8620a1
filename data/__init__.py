"""Data: from text to batches, through sources, tokenizers, token stores, packing and the loader.

`open_stores.open_data(config)` returns a tokenizer and a token store for each split.
`packing.PackedRows` makes rows from a store of documents, `text_rows.TextRows` from a store of text
pairs. `loader.Batches` makes batches of rows, and `loader.read_ahead` builds them in the
background. The package uses numpy throughout and depends neither on models nor on objectives.
"""

import errors  # noqa: F401  first, since it names the systems that the project runs on
