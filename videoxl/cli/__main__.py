"""`python -m videoxl.cli`, the same as `videoxl`."""

from videoxl.cli.app import main

main()
