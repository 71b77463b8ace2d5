"""The command luna-ext, and modules with its subcommands."""
