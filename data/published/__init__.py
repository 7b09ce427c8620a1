"""Files of published tokenizers: which tokens are special, what frames a text, and downloads."""
