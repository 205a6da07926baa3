"""Structured output: what a request asks of its text becomes a mask over the vocabulary for each token."""
