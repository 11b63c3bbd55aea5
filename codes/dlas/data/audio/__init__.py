"""Sound: reading files, and data sets of speech with and without its text."""
