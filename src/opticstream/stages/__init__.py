"""What is done to tiles, mosaics, volumes, slices and the sample: read, compute, write atomically.

Each stage is a function of files and settings, named by a verb, in the room of what it works on. No Prefect and no
rules about when to run.
"""
