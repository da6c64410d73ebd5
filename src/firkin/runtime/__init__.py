"""L3, the parent's half: compiles a configuration, starts the child, watches over it."""
