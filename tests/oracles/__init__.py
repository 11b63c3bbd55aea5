"""Numbers computed by other libraries on inputs that are made by rule; see README.md."""
