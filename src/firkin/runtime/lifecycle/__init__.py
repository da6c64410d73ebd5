"""The life of an OCI container, one module an operation: create, start, kill, delete, exec …

Each operation is a process of its own that finds the container by its folder
(:mod:`firkin.runtime.lifecycle.folder`) and ends when it is done. What only
some of them need is loaded only by those: a whole ``kill`` takes little longer
than the interpreter's own start.

Source: runtime-spec runtime.md.
"""
