"""The method: the players, their losses, and the levels they meet on."""
