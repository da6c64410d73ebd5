"""L0, the kernel interface: one module a facility, nothing above it imported."""
