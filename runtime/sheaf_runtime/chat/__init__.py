"""`sheaf chat`: a conversation in a terminal with any OpenAI-compatible endpoint."""
