"""Networks of speech: TorToiSe's family, under the names of their published weights."""
