"""What frozen networks make of a data set, computed once: a folder of results and the data set that reads it."""
