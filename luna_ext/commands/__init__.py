"""The command luna-ext, and its subcommands by what they are about."""
