"""The command line: the program `cxr-edge` and the commands of the runtime."""
