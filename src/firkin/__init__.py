"""firkin: a container engine that you can read, import and trust."""

__version__ = "0.1.0"
