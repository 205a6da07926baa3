"""What a model folder says about pooling: whether it makes embeddings or scores instead of text, and how."""
