"""What all subcommands have in common on the command line: the parser, and values from text."""
