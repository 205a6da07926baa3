"""Model architectures on plain torch: config, layers, weights. Nothing here knows about requests."""
