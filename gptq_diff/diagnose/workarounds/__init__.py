"""What helped: workarounds that were run, one file each."""
