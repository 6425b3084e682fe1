"""Result files in, tables and figures out. Knows nothing of the testbed but the names of its columns."""
