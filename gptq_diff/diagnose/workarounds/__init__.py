"""What helped: workarounds that were run, one file each. (The lead writes this folder; see its report in the log.)"""
