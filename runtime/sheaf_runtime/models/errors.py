"""What a model that cannot be served is refused with."""


class UnsupportedModelError(ValueError):
    """The folder is not a model that can be served; the message says what to change."""
