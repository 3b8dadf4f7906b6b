"""What the subcommands of `dpo-studio` do; the command line itself is `dpo_studio.cli`."""
