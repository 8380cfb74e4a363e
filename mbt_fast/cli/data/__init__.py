"""``mbt-fast data``: manifests from annotation files, and what can be known of a manifest."""

import argparse

from mbt_fast.cli.data import check, import_dataset, pack, stats, synthetic

HELP = "Make, check, measure and pack the manifests that training reads."

COMMANDS = {"check": check, "stats": stats, "pack": pack, "synthetic": synthetic}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands below ``mbt-fast data``."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    for name, help_text in import_dataset.DATASETS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        import_dataset.add_arguments(command, name)
        command.set_defaults(run_data=import_dataset.run)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run_data=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return args.run_data(args)
