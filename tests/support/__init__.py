"""What the tests share: requirements, test roots, the command, the search for leftovers."""
