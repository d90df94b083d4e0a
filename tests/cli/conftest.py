"""The command line, called as a shell would."""

from command_line import acmsao

__all__ = ["acmsao"]
