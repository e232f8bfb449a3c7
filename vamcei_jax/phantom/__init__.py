"""The embedded data: anatomy, MR signal and scanner of synthetic patients."""
