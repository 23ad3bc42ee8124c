"""Parts of a joint graph computed in chunks of rows, so that no value has all of them at once."""
