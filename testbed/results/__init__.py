"""Result rows: their schema, the folder that holds them, and the record of how they were made."""
