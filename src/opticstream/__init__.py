"""OpticStream: raw tiles of a polarization-sensitive OCT microscope in, registered brain volumes out."""

__version__ = "0.1.0"
