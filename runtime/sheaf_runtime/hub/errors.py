"""Its own file, so that the process that serves can import it without the hub's library."""


class HubError(ValueError):
    """The model cannot be had from the hub; one line that says what to do."""
