"""The subcommands of luna-ext, by what they are about."""
