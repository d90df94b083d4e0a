"""From a configuration to a finished run: what is read, compared, planned, and attempted."""
