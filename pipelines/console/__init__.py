"""The command line: options and help, the run of a command, its progress and its signals."""
