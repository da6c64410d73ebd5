"""L1, pure data: OCI configurations parsed, validated and given their defaults."""
