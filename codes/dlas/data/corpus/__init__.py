"""A corpus of speech made of recordings: cut at silences, filtered, transcribed, listed with other clips of each voice."""
