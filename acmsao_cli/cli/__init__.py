"""The command line: one file for each command; no torch at module level."""
