"""What a model that cannot be served is refused with."""


class UnsupportedModelError(ValueError):
    """The folder is not a model that can be served; the message says what to change."""


class AdapterError(ValueError):
    """The folder is not an adapter for this model; the message says what to change."""


class AdapterMissingError(AdapterError):
    """There is no adapter at all."""
