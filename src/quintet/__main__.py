"""`python -m quintet` is `quintet`."""

from quintet.cli.app import main

main()
