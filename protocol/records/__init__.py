"""Run folders and results from elsewhere, read as untrusted data into records."""
