"""A private machine inside this one: namespaces, the processes in them, and ways in."""
