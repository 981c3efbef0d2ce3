"""What a run did, for people and machines."""
