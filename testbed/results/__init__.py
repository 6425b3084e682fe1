"""Rows on disk: their schema, the folder that holds them, how they were made."""
