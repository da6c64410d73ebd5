"""L3, what IMAGE names: the host base, an empty root, a folder or an archive."""
