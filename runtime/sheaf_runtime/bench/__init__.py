"""`sheaf bench serve`: load on any OpenAI-compatible endpoint, and what the clients saw of it."""
