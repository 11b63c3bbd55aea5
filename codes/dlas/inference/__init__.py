"""Networks at work: pictures of any size through them, from files to files; and networks made ready for others."""
