"""Model families: loading, the loss, sampling, and the files other programs read."""
