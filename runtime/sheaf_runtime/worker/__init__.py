"""The device side: a mirror of the requests, step inputs, paged attention, the sampler, the executor."""
