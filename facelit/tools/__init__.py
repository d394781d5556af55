"""The command line's tools: everything besides training, one file for each command."""
