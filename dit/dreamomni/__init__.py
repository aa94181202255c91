"""DreamOmni v1: the transformer with UNet-like skips, its small VAE, and its prompt grammar."""
