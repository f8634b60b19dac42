"""What a run shows: rules of family 9."""
