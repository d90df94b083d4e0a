"""Files a run is continued from, each whole or absent."""
