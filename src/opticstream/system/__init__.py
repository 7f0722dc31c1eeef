"""Functions of the operating system and its file systems, with fallbacks for those that are missing."""
