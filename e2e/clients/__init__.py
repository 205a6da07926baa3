"""Programs that people bring, each run against a real server: `python -m clients` runs them all."""
