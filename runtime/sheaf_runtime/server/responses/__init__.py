"""``/v1/responses``: OpenAI's newer face of a chat. Its requests become a chat's, its answers are items."""
