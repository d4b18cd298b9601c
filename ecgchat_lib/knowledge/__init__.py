"""What is known of ECGs: normal limits with their sources."""
