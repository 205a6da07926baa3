"""A client's side of any OpenAI-compatible endpoint: for `sheaf chat` and `sheaf bench serve`."""
