"""The ``firkin-runtime`` command: an OCI runtime with the command line of runc."""
