"""Ways through a network: in tiles that memory has room for, and as the mean over eight ways of turning a picture."""
