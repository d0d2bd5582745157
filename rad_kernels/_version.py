"""The version, in this one place: packaging reads it without importing the compiled library."""

__version__ = "0.1.0"
