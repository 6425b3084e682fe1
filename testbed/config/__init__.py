"""The configuration: its schema, its rules, and how conf/ and the command line become one checked object."""
