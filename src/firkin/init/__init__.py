"""L2, the child's half: carries out a Plan and ends in execve."""
