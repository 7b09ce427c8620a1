"""The run folder: its files, lock, log, console and trackers, and the check before a resume."""
