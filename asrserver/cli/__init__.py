"""What a person types: the asrserver command and its subcommands. Nothing imports it."""
