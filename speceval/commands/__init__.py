"""The commands of `speceval`, a module each. They import what they need when called: `--help` answers at once."""
