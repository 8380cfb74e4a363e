"""The command ``mbt-fast``: one module per subcommand, each with HELP, add_arguments and run."""
