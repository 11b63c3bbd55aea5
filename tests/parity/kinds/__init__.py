"""One module a family of fixtures. `parity.harness.load_handlers` imports each; a new family is a new file."""
