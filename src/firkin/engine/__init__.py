"""L4, options and an image become one container, from start to removal."""
