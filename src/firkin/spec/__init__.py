"""L1, pure data: OCI configurations parsed, validated and given their defaults."""

# The version of the runtime specification that all this is written for.
OCI_VERSION = "1.3.0"
