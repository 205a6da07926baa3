"""Decoders without a native description: transformers' modelling code on our pages. Imports transformers."""
