"""What the end-to-end tests share: waiting, streams, faults."""
