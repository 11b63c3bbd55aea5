"""Speaking: from a text and a voice to sound."""
