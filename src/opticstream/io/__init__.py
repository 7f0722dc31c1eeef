"""Formats, folders and file names."""
