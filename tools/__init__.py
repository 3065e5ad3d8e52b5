"""Commands for people and CI that are no stages, one file each."""
