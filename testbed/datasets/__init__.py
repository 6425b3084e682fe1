"""Texts and images from packages and folders."""
