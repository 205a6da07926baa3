"""The API process: HTTP in, tokens to and from the engine core, text out. Never imports torch."""
