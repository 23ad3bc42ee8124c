"""The joint graph: capturing it, reading it, writing it anew in another order."""
