"""Run the command line with `python -m spurmix`."""

from spurmix.cli.app import main

main()
