"""Other people's programs read what this one writes, and the other way round."""
