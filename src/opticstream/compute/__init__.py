"""Arrays in, arrays out: the numerics of OpticStream, with no files and no settings objects."""
