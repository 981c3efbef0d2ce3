"""Published experiments, one small file each, and what reads them."""
