"""``make soak``: the real server under random traffic for minutes, and the engine's state machines for a
million steps. ``python -m soak --help`` says what can be chosen."""
