"""Data sets: texts and images from packages and folders."""
