"""Many recordings: one manifest from each dataset, synthetic ECGs, reports and labels."""
