"""Models by their name on the Hugging Face hub: what is one, which of its files are read, and the download,
which runs in a process of its own (``python -m sheaf_runtime.hub``)."""
