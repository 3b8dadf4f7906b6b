"""The nouns of the loop as frozen dataclasses. Standard library only."""
