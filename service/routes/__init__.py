"""The endpoints, one file for each thing they are about; thin: a path, a status, a few lines."""
