"""From a configuration to a trained model: assemble, loop, report."""
