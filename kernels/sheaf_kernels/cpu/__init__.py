"""The kernels for CPUs: C in ``csrc``, compiled where they run; each module calls its own."""
