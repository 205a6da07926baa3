class GrammarError(ValueError):
    """A grammar that cannot be held; the message says where and what to change."""
