"""The command line: asrserver and its subcommands. No other package imports it."""
