"""`python -m acmsao_cli` and the console script."""

from acmsao_cli.cli.app import main

if __name__ == "__main__":
    main()
