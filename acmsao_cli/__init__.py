"""Fine-tune SDXL and causal language models on small GPUs from a shell."""

__version__ = "0.1.0"
