"""Groups of documents, such as languages: their field, their counts, their shares in training."""
