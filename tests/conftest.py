"""What holds for every test: two processes share the machine, so each computes with one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; children inherit it
