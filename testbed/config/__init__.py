"""The configuration: its schema, its rules, and the functions that turn conf/ and a command line into one object."""
