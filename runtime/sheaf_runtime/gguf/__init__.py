"""GGUF files: their header read as the files of a Hugging Face folder. Imports no torch."""
