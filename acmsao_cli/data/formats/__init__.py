"""One file for each way a data set can lie on disk."""
