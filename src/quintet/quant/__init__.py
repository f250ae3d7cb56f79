"""Weight formats other than plain floats, one file each, and the twins of modules that compute with them."""
