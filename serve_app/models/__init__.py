"""The models: which there are, where their weights are kept, and how they are fetched and loaded."""
