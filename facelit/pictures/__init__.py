"""Pictures of stored images."""
