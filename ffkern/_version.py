"""The version of ffkern; the build reads it from here."""

__version__ = "0.1.0"
