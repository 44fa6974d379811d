"""Studies of designers and markets, and their statistics and figures."""
